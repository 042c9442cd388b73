"""Is this operator to be trusted at all? Cheap tests on a small sample, before every analysis."""

from layerhess.checks.findings import SelfCheck
from layerhess.checks.self_check import check_awake, self_check

__all__ = ["SelfCheck", "check_awake", "self_check"]
