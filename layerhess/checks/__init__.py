"""Can this matrix be trusted? Cheap tests of the loss and its derivatives on a small sample, before every analysis."""

from layerhess.checks.findings import SelfCheck
from layerhess.checks.self_check import check_unsampled, self_check

__all__ = ["SelfCheck", "check_unsampled", "self_check"]
