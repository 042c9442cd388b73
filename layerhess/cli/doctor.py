"""What is installed, on which devices, and whether second derivatives are right there."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from json import dumps
from typing import Any

import torch

import layerhess
from layerhess.analysis import self_test
from layerhess.cli.exit_codes import DONE, UNFINISHED
from layerhess.cli.lines import plain
from layerhess.linalg.numbers import counted, duration
from layerhess.objective import torch_version

NEEDED = ("torch", "numpy", "scipy", "matplotlib", "typer", "rich", "jinja2", "safetensors")
EXTRAS = ("pandas", "scikit-learn", "lightning", "transformers", "accelerate", "tensorboard")


def examine(*, json: bool) -> int:
    """Print versions, devices and the self-test, as text or as JSON; 0 if all is right or refused, else 1."""
    began = time.monotonic()
    report = surroundings()
    if not json:
        plain(heading(report))
    findings = []
    for device in tested_devices():
        if not json:
            plain(f"\nSecond derivatives on {device}, relative errors in float64 and float32:")
        for finding in self_test.run(device):
            findings.append(finding)
            if not json:
                plain(line(finding))
    ok = all(finding.ok for finding in findings) and not report["torch_lacks"]
    seconds = time.monotonic() - began
    if json:
        made = [
            asdict(finding) | {key: _number(getattr(finding, key)) for key in ("error", "single_error")}
            for finding in findings
        ]
        print(
            dumps(report | {"checks": made, "tolerance": self_test.TOLERANCE, "seconds": seconds, "ok": ok}, indent=2)
        )
    else:
        plain(verdict(findings, report["torch_lacks"], seconds))
    return DONE if ok else UNFINISHED


def surroundings() -> dict[str, Any]:
    """Versions of what is needed and of what is optional, devices and threads; JSON types only."""
    devices: list[dict[str, Any]] = [{"name": "cpu", "kind": platform.processor() or platform.machine(), "bytes": None}]
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        devices.append({"name": f"cuda:{index}", "kind": seen.name, "bytes": seen.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "kind": "Apple", "bytes": None})
    return {
        "layerhess": layerhess.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in NEEDED} | {"torch": str(torch.__version__)},  # with its build
        "extras": {name: version_of(name) for name in EXTRAS},
        "torch_checked": {device.type: torch_version.is_checked(device.type) for device in tested_devices()},
        "torch_lacks": torch_version.missing(),
        "devices": devices,
        "threads": torch.get_num_threads(),
    }


def version_of(package: str) -> str | None:
    """The version that is installed, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tested_devices() -> list[torch.device]:
    """The CPU, and the first of the GPUs (MPS has no float64)."""
    return [torch.device("cpu"), *([torch.device("cuda:0")] if torch.cuda.is_available() else [])]


def heading(report: Mapping[str, Any]) -> str:
    """The surroundings as lines."""

    def listed(versions: Mapping[str, str | None]) -> str:
        return ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)

    missing = [name for name, version in report["extras"].items() if version is None]
    without = f"; not here: {', '.join(missing)}" if missing else ""
    devices = [one["name"] + (f" ({one['kind']})" if one["kind"] else "") for one in report["devices"]]
    return "\n".join(
        [
            f"layerhess {report['layerhess']}, Python {report['python']}, {report['platform']}",
            f"needed:   {listed(report['versions'])}",
            f"optional: {listed(report['extras']) or 'none'}" + without,
            f"torch:    {standing(report)}",
            f"devices:  {', '.join(devices)}; {counted(report['threads'], 'thread')}",
        ]
    )


def standing(report: Mapping[str, Any]) -> str:
    """What is known of this version of torch."""
    unchecked = [kind for kind, known in report["torch_checked"].items() if not known]
    if lacking := report["torch_lacks"]:
        return f"lacks {counted(len(lacking), 'private name')} that the library uses; every analysis is refused"
    if unchecked:
        return f"not checked before on {' and '.join(unchecked)}; a first analysis begins with the tests below"
    return "a version that was checked"


def line(finding: self_test.Finding) -> str:
    """A finding: name, errors in float64 and in float32, outcome."""
    errors = [f"{error:.0e}" if error == error else "-" for error in (finding.error, finding.single_error)]
    return f"  {finding.name:<22}{errors[0]:>6}{errors[1]:>6}  {finding.outcome}"


def verdict(findings: list[self_test.Finding], lacks: list[str], seconds: float) -> str:
    """The last line: whether this machine can be used, and what to do if not."""
    wrong = [finding for finding in findings if not finding.ok]
    refused = [finding for finding in findings if finding.ok and finding.outcome != self_test.RIGHT]
    took = f" ({duration(seconds)})"
    if lacks:
        return f"\nNOT USABLE: torch lacks {', '.join(lacks)}. Install '{torch_version.REQUIREMENT}'.{took}"
    if not wrong:
        known = f"; {' and '.join(finding.name for finding in refused)}: wrong here, and every analysis refuses them"
        return f"\nThis machine's second derivatives are right{known if refused else ''}.{took}"
    names = ", ".join(finding.name for finding in wrong)
    return (
        f"\nNOT RIGHT on this machine: {names}. Do not trust curvature of such layers; try another version of torch "
        f"than {torch.__version__}, and please report this.{took}"
    )


def _number(error: float) -> float | None:
    return error if error == error else None
