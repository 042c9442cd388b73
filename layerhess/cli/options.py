"""The options of the commands, in groups: the common ones first, the others under headings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from layerhess.planning.export.export import FORMATS
from layerhess.results.plan import COUPLINGS, CRITERIA

COMMON = "Options"
ESTIMATES = "More of each spectrum"
EXACTNESS = "How exactly, and by which way"
ROOM = "Memory and time"
SUBJECT = "Model and data"
RUNNING = "The run and its errors"
COST = "Where it would run"
CHOICES = "What may be done to a layer"
JUDGED = "How it is judged"

OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "empirical_fisher:token")
SCHEMES = ("parameter", "weight", "module", "depth:2")
PATHS = ("auto", "exact", "factors", "gram", "differences")


def _option(*flags: str, help: str, group: str = COMMON, words: tuple[str, ...] = (), **more: Any) -> Any:
    """An option of a group. ``words``: what a shell completes its value to."""

    def completed(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return typer.Option(*flags, help=help, rich_help_panel=group, autocompletion=completed if words else None, **more)


Factory = Annotated[str, typer.Argument(metavar="FACTORY", help="package.module:factory or path/to/file.py:factory")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="folder of a saved analysis")]

# -- the common ones ---------------------------------------------------------------------------------------------------

Blocks = Annotated[
    list[str] | None,
    _option(
        metavar="SCHEME", words=SCHEMES,
        help="parameter, weight, module, depth:K, or NAME=GLOB (repeat it)  [default: parameter]",
    ),
]  # fmt: skip
Operator = Annotated[
    str, _option(metavar="MATRIX", words=OPERATORS, help="hessian, gauss_newton, empirical_fisher[:token]")
]
Top = Annotated[int, _option(metavar="K", help="how many of the largest eigenvalues")]
Bottom = Annotated[int, _option(metavar="K", help="how many of the smallest eigenvalues")]
Full = Annotated[bool, _option("--full/--no-full", help="also the matrix of the whole model")]
Everything = Annotated[bool, _option("--all", help="every estimate below, and the bottom eigenvalue")]
Examples = Annotated[int | None, _option(metavar="N", help="analyse a fixed random subset of this size")]
Device = Annotated[
    str | None,
    _option(metavar="NAME", words=("cpu", "cuda"), help="cpu, cuda, cuda:1, ...  [default: where the model is]"),
]
Out = Annotated[
    Path | None, _option(metavar="DIR", help="where the result goes  [default: layerhess-results/NAME-TIME]")
]
Json = Annotated[bool, _option("--json", help="print JSON on stdout, and nothing else there")]

# -- estimates ---------------------------------------------------------------------------------------------------------

Trace = Annotated[bool, _option("--trace", group=ESTIMATES, help="the trace of each, with its standard error")]
Diagonal = Annotated[bool, _option("--diagonal", group=ESTIMATES, help="the diagonal of each")]
Density = Annotated[bool, _option("--density", group=ESTIMATES, help="the spectral density of each")]
Coupling = Annotated[bool, _option("--coupling", group=ESTIMATES, help="how strongly layers interact")]
Sampling = Annotated[
    bool | None,
    _option(
        "--sampling/--no-sampling", group=ESTIMATES,
        help="how far numbers depend on the data  [default: with --examples]",
    ),
]  # fmt: skip
TraceTol = Annotated[
    float | None,
    _option(metavar="X", group=ESTIMATES, help="standard error of traces, relative  [default: 0.02]"),
]
TraceMethod = Annotated[
    str | None,
    _option(
        metavar="NAME", group=ESTIMATES, words=("auto", "hutchinson", "hutch++", "xtrace"),
        help="auto, hutchinson, hutch++ or xtrace  [default: auto]",
    ),
]  # fmt: skip
DiagonalProbes = Annotated[
    int | None, _option(metavar="N", group=ESTIMATES, help="random vectors at most  [default: 32]")
]
DensityProbes = Annotated[
    int | None, _option(metavar="N", group=ESTIMATES, help="random vectors a density  [default: 10]")
]
DensitySteps = Annotated[
    int | None, _option(metavar="N", group=ESTIMATES, help="Lanczos steps for each of them  [default: 30]")
]
CouplingProbes = Annotated[
    int | None, _option(metavar="N", group=ESTIMATES, help="random vectors a block  [default: 8]")
]

# -- how exactly -------------------------------------------------------------------------------------------------------

Tol = Annotated[float, _option(metavar="X", group=EXACTNESS, help="relative tolerance of the error bounds")]
Exclude = Annotated[
    str,
    _option(
        metavar="X", group=EXACTNESS,
        help="relative size beyond which no further eigenvalue is left open; none: not asked",
    ),
]  # fmt: skip
Copies = Annotated[
    str,
    _option(
        metavar="HOW", group=EXACTNESS, words=("search", "unchecked"),
        help="search for further copies of the eigenvalues found, or leave them unchecked",
    ),
]  # fmt: skip
Seed = Annotated[int, _option(metavar="N", group=EXACTNESS, help="seed of the random starts")]
Method = Annotated[
    str,
    _option(metavar="NAME", group=EXACTNESS, words=("lanczos", "power"), help="lanczos, or power (power iteration)"),
]
Way = Annotated[
    str,
    _option(
        metavar="NAME", group=EXACTNESS, words=PATHS,
        help="auto, exact, factors, gram (complete spectra), which refuse where not licensed; differences (of "
        "gradients, where there is no second derivative)",
    ),
]  # fmt: skip
DensityAxis = Annotated[
    str | None,
    _option(
        metavar="NAME", group=EXACTNESS, words=("linear", "log"),
        help="of densities: linear, or log (of log10 |eigenvalue|, for either sign)  [default: linear]",
    ),
]  # fmt: skip
SkipFailed = Annotated[bool, _option("--skip-failed", group=EXACTNESS, help="go on without blocks that fail a check")]

# -- memory and time ---------------------------------------------------------------------------------------------------

Memory = Annotated[
    str | None,
    _option(
        metavar="SIZE", group=ROOM, help="budget for graphs and vectors  [default: 8GiB, or 2.5 training steps]"
    ),
]  # fmt: skip
Segments = Annotated[
    list[str] | None,
    _option(
        metavar="NAME", group=ROOM,
        help="auto, none, or modules (names, globs) whose insides every product computes anew",
    ),
]  # fmt: skip
BatchSize = Annotated[
    int | None, _option(metavar="N", group=ROOM, help="split larger batches; saves memory, same result")
]
MaxPasses = Annotated[int, _option(metavar="N", group=ROOM, help="stop after this many passes over the data")]
TimeLimit = Annotated[float | None, _option(metavar="SECONDS", group=ROOM, help="stop after this many seconds")]
Threads = Annotated[
    int | None, _option(metavar="N", group=ROOM, min=1, help="CPU threads  [default: torch's own choice]")
]

# -- model and data ----------------------------------------------------------------------------------------------------

Checkpoint = Annotated[
    Path | None,
    _option(metavar="FILE", group=SUBJECT, help="load these weights (safetensors) into the model first"),
]
EvalMode = Annotated[bool, _option("--eval", group=SUBJECT, help="put the model into eval mode meanwhile")]
StopGradients = Annotated[
    str | None,
    _option(
        metavar="HOW", group=SUBJECT, words=("refuse", "constant"),
        help="refuse or constant: what is detached or straight-through  [default: refuse]",
    ),
]  # fmt: skip
ExamplesSeed = Annotated[int, _option(metavar="N", group=SUBJECT, help="which subset --examples takes")]
LearningRate = Annotated[
    float | None,
    _option(
        "--learning-rate", metavar="X", group=SUBJECT, help="of your training, to be held against 2 / lambda_max"
    ),
]  # fmt: skip

# -- the run -----------------------------------------------------------------------------------------------------------

Resume = Annotated[
    bool, _option("--resume", group=RUNNING, help="go on with the run that was stopped while it wrote into --out")
]
Traceback = Annotated[bool, _option("--traceback", group=RUNNING, help="show the traceback of errors in your code")]
Quiet = Annotated[bool, _option("--quiet", "-q", group=RUNNING, help="nothing on stderr but errors")]

# -- of `plan` ---------------------------------------------------------------------------------------------------------

Bits = Annotated[str, _option(metavar="LIST", help="bits that a layer may get, such as 2,3,4,8; none: no rounding")]
Budget = Annotated[
    str,
    _option(metavar="SIZE", help="4bit (mean of the weights), 3.5MB, or increase=X (the smallest that costs no more)"),
]
Sparsity = Annotated[str | None, _option(metavar="LIST", help="also pruning: shares of zeros, 2:4, or both: 0.5,2:4")]
MetricOf = Annotated[
    str | None,
    _option(
        "--metric", metavar="WHAT", words=("accuracy",),
        help="accuracy, or mine.py:function of (output, target) or of (model)",
    ),
]  # fmt: skip
HeldOut = Annotated[str | None, _option(metavar="FACTORY", help="mine.py:factory of data that the plan is verified on")]
Layers = Annotated[str, _option(metavar="SCHEME", group=CHOICES, words=SCHEMES, help="weight, module or depth:K")]
Granularity = Annotated[
    str,
    _option(
        metavar="HOW", group=CHOICES, words=("channel", "tensor", "group:32"),
        help="what shares a scale: channel, tensor or group:SIZE",
    ),
]  # fmt: skip
Asymmetric = Annotated[bool, _option("--asymmetric", group=CHOICES, help="with zero points")]
ScaleOf = Annotated[
    str,
    _option(
        "--scale", metavar="HOW", group=CHOICES, words=("minmax", "mse"), help="minmax, or mse: least squared error"
    ),
]  # fmt: skip
Pin = Annotated[
    list[str] | None,
    _option(
        metavar="NAME=OPTION", group=CHOICES, help="its option: bits, or a sparsity (repeat it; NAME may be a glob)"
    ),
]
Allow = Annotated[
    list[str] | None, _option(metavar="GLOB=LIST", group=CHOICES, help="only these options for them (repeat it)")
]
Tie = Annotated[
    list[str] | None, _option(metavar="A,B", group=CHOICES, help="layers that take the same option (repeat it)")
]
Criterion = Annotated[
    str,
    _option(
        metavar="NAME", group=JUDGED, words=CRITERIA,
        help="measured; or curvature, gauss_newton, hawq_v2, hawq, fisher",
    ),
]  # fmt: skip
Couplings = Annotated[
    str, _option(metavar="HOW", group=JUDGED, words=COUPLINGS, help="interactions from outputs, by hessian, or none")
]
Verify = Annotated[
    bool, _option("--verify/--no-verify", group=JUDGED, help="hold it against uniform, HAWQ-V2 and random plans")
]
Curvature = Annotated[
    bool, _option("--curvature/--no-curvature", group=JUDGED, help="show what curvature predicts, beside")
]
PlanSeed = Annotated[int, _option("--seed", metavar="N", group=JUDGED, help="of random vectors and random plans")]
Export = Annotated[
    list[str] | None,
    _option(
        metavar="KIND=FILE", group=RUNNING, words=tuple(f"{kind}=" for kind in FORMATS),
        help="also for torchao, transformers, gguf or nncf (repeat it)",
    ),
]  # fmt: skip

# -- of `estimate` -----------------------------------------------------------------------------------------------------

World = Annotated[int, _option(metavar="N", group=COST, min=1, help="processes that share the data")]
DeviceMemory = Annotated[
    str | None,
    _option(
        metavar="SIZE", group=COST,
        help="memory of each process's device, such as 80GiB  [default: what is free here]",
    ),
]  # fmt: skip
