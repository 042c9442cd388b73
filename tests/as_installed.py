"""A stranger's first minutes with an installed layerhess without extras; run by the interpreter of that environment.

``python tests/as_installed.py README.md`` ends with 0 if all is well. It imports nothing of this repository.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

COMMAND = str(Path(sysconfig.get_path("scripts")) / "layerhess")
# What asks for an extra that is not there, and what the one sentence about it says.
WITHOUT = {
    "sklearn": ([COMMAND, "demo"], "pip install 'layerhess[demo]'"),
    "pandas": ("lh.load('my-analysis').to_frame()", "pip install 'layerhess[pandas]'"),
    "lightning": ("import layerhess.lightning", "pip install 'layerhess[lightning]'"),
    "transformers": ("import layerhess.transformers", "pip install 'layerhess[transformers]'"),
    "torchao": ("lh.load_plan('my-plan').export('torchao', 'plan.out')", "pip install 'layerhess[torchao]'"),
    "gguf": ("lh.load_plan('my-plan').export('gguf', 'plan.out')", "pip install gguf"),
}
LOADED = """
analysis, again = lh.load("my-analysis"), lh.load("copy")
for name, block in analysis.blocks.items():
    assert list(block.eigenvalues) == list(again.blocks[name].eigenvalues), name
    assert max(block.error_bounds) < float("inf") and block.ok, (name, block.status)
assert list(analysis.full.eigenvalues) == list(again.full.eigenvalues)
"""


def main(readme: str) -> None:
    """Every step; raises at the first that fails."""
    first = re.search(r"^```python\n(.*?)^```", Path(readme).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert first is not None, "README.md has no Python block"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        done("import sysconfig; assert lh.__file__.startswith(sysconfig.get_path('purelib')), lh.__file__")
        version = importlib.metadata.version("layerhess")
        assert done([COMMAND, "--version"]).strip().endswith(version)
        assert "second derivatives are right" in done([COMMAND, "doctor"])
        Path("factory.py").write_text(done([COMMAND, "template"]), encoding="utf-8")
        done([COMMAND, "analyze", "factory.py:make", "--out", "first-result"])
        assert done([COMMAND, "report", "first-result"]).strip().endswith("report.html")
        done(first[1])
        done("lh.load('my-analysis').save('copy')")
        done(LOADED)
        done([COMMAND, "plan", "factory.py:make", "--bits", "4,8", "--budget", "6bit", "--out", "my-plan"])
        for module, (asking, sentence) in WITHOUT.items():
            assert importlib.util.find_spec(module) is None, f"{module} is installed: this is no empty environment"
            said = refused(asking)
            assert sentence in said, f"{module}: {said}"
    print(f"layerhess {version} works as installed, and names the extras that it lacks.")


def done(asked: str | list[str]) -> str:
    """What a command, or a program after ``import layerhess as lh``, prints; it must succeed."""
    ran = _run(asked)
    assert ran.returncode == 0, f"{asked}: {ran.stdout}\n{ran.stderr}"
    return ran.stdout


def refused(asked: str | list[str]) -> str:
    """The last line of what is said on stderr; it must fail, and not as a bug."""
    ran = _run(asked)
    assert ran.returncode in (1, 2) and "bug in layerhess" not in ran.stderr, f"{asked}: {ran.stdout}\n{ran.stderr}"
    return ran.stderr.strip().splitlines()[-1]


def _run(asked: str | list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import layerhess as lh\n{asked}"] if isinstance(asked, str) else asked
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own = {"MPLBACKEND": "Agg", "PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=alone | own, timeout=600)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
