"""The commands of the command line, with their options."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

import layerhess
from layerhess.analysis.analyze import analyze as analyze_now
from layerhess.analysis.compare import compare as compare_now
from layerhess.analysis.estimate import estimate as estimate_now
from layerhess.analysis.result import rewrite_report
from layerhess.cli.demo import ASKED, PEAK_LEARNING_RATE
from layerhess.cli.demo import build as build_demo
from layerhess.cli.display import Display, cost_sentences
from layerhess.cli.exit_codes import DONE, UNFINISHED, ended, stdout_on_stderr
from layerhess.cli.question import NO_COST, arguments_of, objective_of, with_options_of
from layerhess.errors import InputError
from layerhess.objective.group import launched, world
from layerhess.objective.objective import Objective
from layerhess.results import store
from layerhess.results.derived import compare_learning_rate
from layerhess.show.comparison import table as comparison_table
from layerhess.show.summary import largest
from layerhess.show.table import as_text, renderable

app = typer.Typer(
    help="Hessian eigenvalues of every layer of a PyTorch model, and of the whole model, each with an error bound.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TEMPLATE = '''"""Run it with: layerhess analyze factory.py:make"""
import torch
import layerhess

def make() -> layerhess.Objective:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.Tanh(), torch.nn.Linear(32, 3))  # your model
    inputs, targets = torch.randn(256, 20), torch.randint(3, (256,))  # your data: batches like this, or a DataLoader
    return layerhess.Objective(model, [(inputs, targets)], torch.nn.CrossEntropyLoss())
'''

Target = Annotated[str, typer.Argument(metavar="FACTORY", help="package.module:factory or path/to/file.py:factory")]
Blocks = Annotated[
    list[str] | None,
    typer.Option(help="parameter, weight, module, depth:K, or NAME=GLOB (repeat it)  [default: parameter]"),
]
Out = Annotated[Path | None, typer.Option(help="output folder  [default: layerhess-results/NAME-TIME]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: where the model is]")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads  [default: torch's own choice]")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="nothing on stderr but errors")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"layerhess {layerhess.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    """Hessian eigenvalues of every layer of a PyTorch model, and of the whole model, each with an error bound."""


@app.command()
def analyze(
    factory: Target,
    blocks: Blocks = None,
    operator: Annotated[
        str, typer.Option(help="which matrix: hessian, gauss_newton, empirical_fisher, empirical_fisher:token")
    ] = "hessian",
    top: Annotated[int, typer.Option(help="how many of the largest eigenvalues")] = 1,
    bottom: Annotated[int, typer.Option(help="how many of the smallest eigenvalues")] = 0,
    full: Annotated[bool, typer.Option("--full/--no-full", help="also the matrix of the whole model")] = True,
    trace: Annotated[bool, typer.Option("--trace", help="the trace of each, with its standard error")] = False,
    diagonal: Annotated[bool, typer.Option("--diagonal", help="the diagonal of each")] = False,
    density: Annotated[bool, typer.Option("--density", help="the spectral density of each")] = False,
    coupling: Annotated[bool, typer.Option("--coupling", help="how strongly layers interact")] = False,
    sampling: Annotated[
        bool | None,
        typer.Option("--sampling/--no-sampling", help="how far numbers depend on the data  [default: with --examples]"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="all of the above, and the bottom eigenvalue")] = False,
    trace_tol: Annotated[float | None, typer.Option(help="standard error of traces, relative  [default: 0.02]")] = None,
    trace_method: Annotated[
        str | None, typer.Option(help="auto, hutchinson, hutch++ or xtrace  [default: auto]")
    ] = None,
    diagonal_probes: Annotated[int | None, typer.Option(help="random vectors at most  [default: 32]")] = None,
    density_probes: Annotated[int | None, typer.Option(help="random vectors a density  [default: 10]")] = None,
    density_steps: Annotated[int | None, typer.Option(help="Lanczos steps for each of them  [default: 30]")] = None,
    coupling_probes: Annotated[int | None, typer.Option(help="random vectors a block  [default: 8]")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="of your training, to be held against 2 / lambda_max")
    ] = None,
    tol: Annotated[float, typer.Option(help="relative tolerance of the error bounds")] = 1e-3,
    exclude: Annotated[
        str, typer.Option(help="relative size beyond which no further eigenvalue is left open; none: not asked")
    ] = "0.05",
    copies: Annotated[
        str, typer.Option(help="search for further copies of the eigenvalues found, or leave them unchecked")
    ] = "search",
    seed: Annotated[int, typer.Option(help="seed of the random starts")] = 0,
    method: Annotated[str, typer.Option(help="lanczos, or power (power iteration)")] = "lanczos",
    path: Annotated[
        str,
        typer.Option(
            help="auto, exact, factors, gram (complete spectra), which refuse where not licensed; differences (of "
            "gradients, where there is no second derivative)"
        ),
    ] = "auto",
    memory: Annotated[
        str | None, typer.Option(help="budget for graphs and vectors  [default: 8GiB, or 2.5 training steps]")
    ] = None,
    segments: Annotated[
        list[str] | None,
        typer.Option(help="auto, none, or modules (names, globs) whose insides every product computes anew"),
    ] = None,
    out: Out = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the run that was stopped while it wrote into --out")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print analysis.json on stdout, and nothing else there")] = False,
    device: Device = None,
    threads: Threads = None,
    examples: Annotated[int | None, typer.Option(help="analyse a fixed random subset of this size")] = None,
    examples_seed: Annotated[int, typer.Option(help="which subset")] = 0,
    eval_mode: Annotated[bool, typer.Option("--eval", help="put the model into eval mode meanwhile")] = False,
    stop_gradients: Annotated[
        str | None, typer.Option(help="refuse or constant: what is detached or straight-through  [default: refuse]")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE.safetensors", help="load these weights into the model first")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="split larger batches; saves memory, same result")] = None,
    max_passes: Annotated[int, typer.Option(help="stop after this many passes over the data")] = 500,
    time_limit: Annotated[float | None, typer.Option(help="stop after this many seconds")] = None,
    skip_failed: Annotated[bool, typer.Option("--skip-failed", help="go on without blocks that fail a check")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="show the traceback of errors in your code")] = False,
    quiet: Quiet = False,
) -> None:
    """Analyse the model that FACTORY returns: every layer's eigenvalues, and the whole model's."""
    options = dict(locals())
    raise typer.Exit(ended(lambda: _analyze(options), show_traceback=traceback))


def _analyze(options: dict[str, Any]) -> int:
    arguments = arguments_of(options)
    out: Path | None = options["out"]
    if options["resume"] and out is None:
        missing = "--resume needs the folder of the run that is to go on"
        raise InputError(missing, where="--out", what_to_do="give it with --out")
    folder = out if out is not None else _default_folder(options["factory"])
    _use_threads(options["threads"])
    with launched() as group:
        if group.rank == 0:  # which writes and prints for all
            folder = store.check_writable(folder)
        return _run(
            lambda: objective_of(options),
            arguments,
            folder,
            quiet=options["quiet"],
            json=options["json"],
            offer_examples=options["examples"] is None,
            learning_rate=_checked_rate(options["learning_rate"]),
        )


def _estimate(
    world: Annotated[int, typer.Option(min=1, help="processes that share the data")] = 1,
    device_memory: Annotated[
        str | None, typer.Option(help="memory of each process's device, such as 80GiB  [default: what is free here]")
    ] = None,
    **options: Any,
) -> None:
    """What `analyze` with these options would cost, from the checks and a few timed products, without a run.

    Time, passes over the data, products, and for each process its peak memory and what it sends. Where a result goes
    and how it is shown (--out, --resume, --learning-rate) changes nothing; --max-passes and --time-limit do.
    """

    def command() -> int:
        arguments = {name: value for name, value in arguments_of(options).items() if name not in NO_COST}
        _use_threads(options["threads"])
        display = Display(quiet=options["quiet"], offer_examples=False)
        with ExitStack() as stack:
            if options["json"]:
                stack.enter_context(stdout_on_stderr())
            stack.enter_context(display.with_warnings())
            found = estimate_now(objective_of(options), **arguments, world=world, device_memory=device_memory)
        print(dumps(asdict(found), indent=2) if options["json"] else cost_sentences(found))
        return DONE

    raise typer.Exit(ended(command, show_traceback=options["traceback"]))


app.command("estimate")(with_options_of(analyze, _estimate))


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of a saved analysis")]) -> None:
    """Make report.html anew from a saved analysis and print its path."""

    def command() -> int:

        typer.echo(rewrite_report(folder))
        return DONE

    raise typer.Exit(ended(command))


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="A B", help="folders of saved analyses; each is compared with the first")
    ],
    json: Annotated[bool, typer.Option("--json", help="print the numbers on stdout, and nothing else there")] = False,
    out: Annotated[Path | None, typer.Option(help="also write comparison.html and comparison.json there")] = None,
) -> None:
    """Which layers' curvature differs between saved analyses, and by more than chance?"""

    def command() -> int:
        found = compare_now(folders)
        place = found.save(out) if out is not None else None
        if json:
            sys.stdout.write(found.to_json())
        elif sys.stdout.isatty():
            Console(highlight=False).print(comparison_table.renderable(found.pairs))
        else:
            print(found)
        if place is not None and not json:
            print(f"\nSaved in {place}; the page is {place / store.COMPARED[1]}")
        return DONE if all(pair.finished for pair in found.pairs) else UNFINISHED

    raise typer.Exit(ended(command))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="output folder")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="seed of the training and of the analysis")] = 0,
    top: Annotated[int, typer.Option(help="how many of the largest eigenvalues")] = 3,
    bottom: Annotated[int, typer.Option(help="how many of the smallest eigenvalues")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more do not help so small a network")] = 1,
    quiet: Quiet = False,
) -> None:
    """Train a small residual network on real digits, analyse it layer by layer, and write a report."""

    def command() -> int:

        folder = store.check_writable(out)
        _use_threads(threads)

        def objective() -> Objective:

            problem = build_demo(seed, Display(quiet=quiet).say)
            return Objective(problem.model, problem.batches, nn.CrossEntropyLoss())

        rate = PEAK_LEARNING_RATE
        asked = {"top": top, "bottom": bottom, "seed": seed, "learning_rate": rate, **ASKED}
        return _run(objective, asked, folder, quiet=quiet, offer_examples=False, learning_rate=rate)

    raise typer.Exit(ended(command))


@app.command()
def template() -> None:
    """Print a ten-line factory to start from."""
    typer.echo(TEMPLATE, nl=False)


def _run(
    make: Any,
    arguments: dict[str, Any],
    folder: Path,
    *,
    quiet: bool,
    json: bool = False,
    offer_examples: bool = True,
    learning_rate: float | None = None,
) -> int:
    """Analyse what ``make()`` returns, save into ``folder``, and print the table or the JSON; the exit code."""
    first = world().rank == 0
    display = Display(quiet=quiet or not first, offer_examples=offer_examples)
    with ExitStack() as stack:
        if json:
            stack.enter_context(stdout_on_stderr())
        stack.enter_context(display.with_warnings())
        objective = make()
        display.heading = f"the result will be in {folder}"  # once the arguments have passed
        try:
            with display:
                analysis = analyze_now(objective, **arguments, out=folder, progress=display)
        except store.SaveError as error:
            raise _rescued(error) from error
    if not first:
        return DONE if analysis.converged else UNFINISHED
    if json:
        sys.stdout.write(store.json_text(folder))
        sys.stdout.flush()
    else:
        _print_table(analysis)
        if learning_rate is not None:
            _print_rate(analysis, learning_rate)
        print(f"\nSaved in {folder}; the report is {folder / store.REPORT}")
    return DONE if analysis.converged else UNFINISHED


def _print_table(analysis: Any) -> None:
    """On stdout: as wide as the terminal and in colour; plain and 100 columns wide where it is not a terminal."""
    if sys.stdout.isatty():
        Console(highlight=False).print(renderable(analysis))
    else:
        print(as_text(analysis))


def _checked_rate(learning_rate: float | None) -> float | None:

    if learning_rate is not None and not 0.0 < learning_rate < float("inf"):
        raise InputError(
            f"the learning rate is {learning_rate}", where="--learning-rate", what_to_do="give a number above 0"
        )
    return learning_rate


def _print_rate(analysis: Any, learning_rate: float) -> None:

    spectrum = largest(analysis)
    if spectrum is not None and (spectrum.operator != "hessian" or spectrum is not analysis.full):
        print("The learning rate was not judged: that takes the largest eigenvalue of the full Hessian.")
    elif spectrum is not None:
        sentence = compare_learning_rate(spectrum, learning_rate)
        print(f"{sentence[0].upper()}{sentence[1:]}.")
    else:
        print("The learning rate cannot be judged: no largest eigenvalue was asked for.")


def _rescued(error: Any) -> Exception:
    """Show numbers that could not be saved where they should, and save them elsewhere."""
    print(as_text(error.analysis), file=sys.stderr)
    try:
        place = error.analysis.save(Path(tempfile.mkdtemp(prefix="layerhess-")) / "analysis")
    except (InputError, OSError):
        return InputError(error.message, where=error.where, what_to_do="the numbers are above; nothing could be saved")
    return InputError(error.message, where=error.where, what_to_do=f"nothing is lost: the analysis is in {place}")


def _default_folder(factory: str) -> Path:
    label = re.sub(r"[^\w.-]+", "-", factory.replace(".py:", ":").rpartition("/")[2].replace(":", "-")).strip("-.")
    return Path("layerhess-results") / time.strftime(f"{label or 'analysis'}-%Y%m%d-%H%M%S")


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
