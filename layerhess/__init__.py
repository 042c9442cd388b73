"""layerhess: the curvature of a network's loss, layer by layer and as a whole, each number with its error bound."""

from layerhess.analysis import analyze
from layerhess.eigsh import Eigenpairs, eigsh
from layerhess.errors import CheckError, InputError, LayerhessWarning
from layerhess.evaluation import batch_loss
from layerhess.objective import Objective
from layerhess.operators.fisher import EmpiricalFisher
from layerhess.operators.gauss_newton import GaussNewton
from layerhess.operators.hessian import Hessian
from layerhess.results import Analysis, Check, Counts, Spectrum
from layerhess.store import load

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Check",
    "CheckError",
    "Counts",
    "Eigenpairs",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "InputError",
    "LayerhessWarning",
    "Objective",
    "Spectrum",
    "analyze",
    "batch_loss",
    "eigsh",
    "load",
]
