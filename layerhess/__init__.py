"""layerhess: the curvature of a network's loss, layer by layer and as a whole, each number with its error bound."""

from layerhess.analysis import analyze
from layerhess.eigsh import Eigenpairs, eigsh
from layerhess.errors import CheckError, InputError, LayerhessWarning
from layerhess.estimators.coupling import Coupling
from layerhess.estimators.density import Density
from layerhess.estimators.diagonal import Diagonal
from layerhess.estimators.trace import Trace
from layerhess.evaluation import batch_loss
from layerhess.objective import Objective
from layerhess.operators.fisher import EmpiricalFisher
from layerhess.operators.gauss_newton import GaussNewton
from layerhess.operators.hessian import Hessian
from layerhess.results import Analysis, Check, Counts, Spectrum
from layerhess.stochastic import coupling, density, diagonal, trace
from layerhess.store import load

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Check",
    "CheckError",
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
    "Objective",
    "Spectrum",
    "Trace",
    "analyze",
    "batch_loss",
    "coupling",
    "density",
    "diagonal",
    "eigsh",
    "load",
    "trace",
]
