"""The wheel, in an environment that has what it needs and nothing else, does what a stranger tries first."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 1_000_000  # 2.2 MB of Python with its docstrings take 0.84 MB


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "layerhess", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:  # a copy: building leaves things behind, and old ones get into the wheel
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(folder / "source"))
    (made,) = folder.glob("*.whl")
    return made


def pip(*arguments: str) -> None:
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}  # not this checkout
    ran = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True, env=alone)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def needed(wheel: Path) -> set[str]:
    """The packages that the wheel needs without extras, and what those need."""
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        asked = re.findall(r"^Requires-Dist: (.*)$", content.read(name).decode(), re.MULTILINE)
    found: set[str] = set()
    while asked:
        wish = Requirement(asked.pop())
        if wish.name in found or (wish.marker is not None and not wish.marker.evaluate({"extra": ""})):
            continue
        if (installed := _requires(wish.name)) is not None:
            found.add(wish.name)
            asked += installed
    return found


def _requires(package: str) -> list[str] | None:
    try:
        return importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:  # such as a driver for GPUs: no test needs it
        return None


def test_the_wheel_has_the_whole_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(wheel) as content:
        inside = {name for name in content.namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "layerhess"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert inside == set(listed.stdout.split())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="links to folders need rights there; make test-wheel is the same elsewhere")
def test_a_strangers_first_minutes(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    (place,) = tmp_path.glob("lib/python*/site-packages")
    for package in needed(wheel):
        for file in importlib.metadata.files(package) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (place / top).exists():
                (place / top).symlink_to(Path(str(importlib.metadata.distribution(package).locate_file(top))))
    pip("--python", str(tmp_path / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    ran = subprocess.run(
        [str(tmp_path / "bin" / "python"), str(ROOT / "tests" / "as_installed.py"), str(ROOT / "README.md")],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
