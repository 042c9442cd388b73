"""layerhess: the curvature of a network's loss, layer by layer and as a whole, each number with its error bound."""

from layerhess.objective import torch_version as _torch_version  # noqa: F401  first: it refuses a torch that is too old

# isort: split
from layerhess.analysis.analyze import analyze
from layerhess.analysis.compare import Comparison, compare
from layerhess.analysis.eigsh import Eigenpairs, eigsh
from layerhess.analysis.estimate import CostEstimate, estimate
from layerhess.analysis.loss_slice import LossSlice, loss_slice
from layerhess.analysis.operators import EmpiricalFisher, GaussNewton, Hessian
from layerhess.analysis.result import Analysis, load
from layerhess.analysis.stochastic import coupling, density, diagonal, trace
from layerhess.errors import CheckError, InputError, LayerhessWarning, ProcessError
from layerhess.linalg.stochastic.coupling import Coupling
from layerhess.linalg.stochastic.density import Density
from layerhess.linalg.stochastic.diagonal import Diagonal
from layerhess.linalg.stochastic.trace import Trace
from layerhess.monitor.monitor import Monitor
from layerhess.objective.losses import batch_loss
from layerhess.objective.objective import Objective
from layerhess.planning.allocation.allocation import Allocation, allocate
from layerhess.planning.plan import plan
from layerhess.planning.result import Plan, load_plan
from layerhess.planning.weights.apply import apply_plan
from layerhess.results.history import load_history
from layerhess.results.options import Prune, Quantize
from layerhess.results.record import Check, Counts
from layerhess.results.spectrum import Spectrum

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Analysis",
    "Check",
    "CheckError",
    "Comparison",
    "CostEstimate",
    "Counts",
    "Coupling",
    "Density",
    "Diagonal",
    "Eigenpairs",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "InputError",
    "LayerhessWarning",
    "LossSlice",
    "Monitor",
    "Objective",
    "Plan",
    "ProcessError",
    "Prune",
    "Quantize",
    "Spectrum",
    "Trace",
    "allocate",
    "analyze",
    "apply_plan",
    "batch_loss",
    "compare",
    "coupling",
    "density",
    "diagonal",
    "eigsh",
    "estimate",
    "load",
    "load_history",
    "load_plan",
    "loss_slice",
    "plan",
    "trace",
]
