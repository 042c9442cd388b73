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
from torch import nn

import layerhess
from layerhess.analysis.analyze import analyze as analyze_now
from layerhess.analysis.compare import compare as compare_now
from layerhess.analysis.estimate import estimate as estimate_now
from layerhess.analysis.result import rewrite_report
from layerhess.cli import options as given
from layerhess.cli.demo import ASKED, PEAK_LEARNING_RATE
from layerhess.cli.demo import build as build_demo
from layerhess.cli.display import Display, cost_sentences
from layerhess.cli.doctor import examine
from layerhess.cli.exit_codes import DONE, UNFINISHED, ended, stdout_on_stderr
from layerhess.cli.help import Command, Commands
from layerhess.cli.lines import console, plain, width_of
from layerhess.cli.question import NO_COST, arguments_of, objective_of, with_options_of
from layerhess.errors import InputError
from layerhess.objective.group import launched, world
from layerhess.objective.objective import Objective
from layerhess.results import store
from layerhess.results.derived import compare_learning_rate
from layerhess.show.comparison import table as comparison_table
from layerhess.show.summary import largest
from layerhess.show.table import WIDTH, as_text, renderable

EXAMPLES = {
    "": """
layerhess demo                                      a first look, in a minute
layerhess template > mine.py                        ten lines to fill in
layerhess analyze mine.py:make                      every layer, and the model
layerhess analyze mine.py:make --all --out run      traces, densities, ... too
layerhess report run                                its page, made anew
layerhess doctor                                    is this machine right?
""",
    "analyze": """
layerhess analyze mine.py:make
layerhess analyze mine.py:make --blocks weight --top 5 --no-full
layerhess analyze mine.py:make --blocks head='head.*' --blocks body='layers.*'
layerhess analyze mine.py:make --all --examples 512 --out run
layerhess analyze mine.py:make --top 5 --out long --resume
layerhess analyze package.module:make --json | jq .full.eigenvalues
""",
    "estimate": """
layerhess estimate mine.py:make --top 5
layerhess estimate mine.py:make --world 8 --device-memory 80GiB --json
""",
    "compare": "layerhess compare before after\nlayerhess compare a b c --out compared",
    "report": "layerhess report layerhess-results/mine-make-20300102-030405",
    "demo": "layerhess demo --out somewhere",
    "template": "layerhess template > mine.py",
    "doctor": "layerhess doctor\nlayerhess doctor --json > machine.json",
}

app = typer.Typer(
    cls=Commands,
    epilog=EXAMPLES[""],
    help="Hessian eigenvalues of every layer of a PyTorch model, and of the whole model, each with an error bound.",
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


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"layerhess {layerhess.__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Hessian eigenvalues of every layer of a PyTorch model, and of the whole model, each with an error bound."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(cls=Command, epilog=EXAMPLES["analyze"])
def analyze(
    factory: given.Factory,
    blocks: given.Blocks = None,
    operator: given.Operator = "hessian",
    top: given.Top = 1,
    bottom: given.Bottom = 0,
    full: given.Full = True,
    everything: given.Everything = False,
    examples: given.Examples = None,
    device: given.Device = None,
    out: given.Out = None,
    json: given.Json = False,
    trace: given.Trace = False,
    diagonal: given.Diagonal = False,
    density: given.Density = False,
    coupling: given.Coupling = False,
    sampling: given.Sampling = None,
    trace_tol: given.TraceTol = None,
    trace_method: given.TraceMethod = None,
    diagonal_probes: given.DiagonalProbes = None,
    density_probes: given.DensityProbes = None,
    density_steps: given.DensitySteps = None,
    coupling_probes: given.CouplingProbes = None,
    tol: given.Tol = 1e-3,
    exclude: given.Exclude = "0.05",
    copies: given.Copies = "search",
    seed: given.Seed = 0,
    method: given.Method = "lanczos",
    path: given.Way = "auto",
    skip_failed: given.SkipFailed = False,
    memory: given.Memory = None,
    segments: given.Segments = None,
    batch_size: given.BatchSize = None,
    max_passes: given.MaxPasses = 500,
    time_limit: given.TimeLimit = None,
    threads: given.Threads = None,
    checkpoint: given.Checkpoint = None,
    eval_mode: given.EvalMode = False,
    stop_gradients: given.StopGradients = None,
    examples_seed: given.ExamplesSeed = 0,
    learning_rate: given.LearningRate = None,
    resume: given.Resume = False,
    traceback: given.Traceback = False,
    quiet: given.Quiet = False,
) -> None:
    """Analyse the model that FACTORY returns, layer by layer.

    For each block and for the whole model: the largest eigenvalues, each with its error bound; a table, and a folder
    with all numbers and a page. Exit code 1: something has not converged, or was refused.
    """
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
    world: given.World = 1,
    device_memory: given.DeviceMemory = None,
    **options: Any,
) -> None:
    """What `analyze` with these options would cost.

    From the checks and a few timed products, without a run: time, passes over the data, products, and for each process
    its peak memory and what it sends. Where a result goes and how it is shown (--out, --resume, --learning-rate)
    changes nothing; --max-passes and --time-limit do.
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
        if options["json"]:
            print(dumps(asdict(found), indent=2))
        else:
            plain(cost_sentences(found))
        return DONE

    raise typer.Exit(ended(command, show_traceback=options["traceback"]))


app.command("estimate", cls=Command, epilog=EXAMPLES["estimate"])(with_options_of(analyze, _estimate))


@app.command(cls=Command, epilog=EXAMPLES["report"])
def report(folder: given.Folder) -> None:
    """Make the page of a saved analysis anew."""

    def command() -> int:

        typer.echo(rewrite_report(folder))
        return DONE

    raise typer.Exit(ended(command))


@app.command(cls=Command, epilog=EXAMPLES["compare"])
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="A B", help="folders of saved analyses; each is compared with the first")
    ],
    json: Annotated[bool, typer.Option("--json", help="print the numbers on stdout, and nothing else there")] = False,
    out: Annotated[Path | None, typer.Option(help="also write comparison.html and comparison.json there")] = None,
) -> None:
    """Which layers differ between saved analyses, by more than chance?"""

    def command() -> int:
        found = compare_now(folders)
        place = found.save(out) if out is not None else None
        if json:
            sys.stdout.write(found.to_json())
        elif sys.stdout.isatty():
            console(sys.stdout).print(comparison_table.renderable(found.pairs))
        else:
            print(found)
        if place is not None and not json:
            print(f"\nSaved in {place}; the page is {place / store.COMPARED[1]}")
        return DONE if all(pair.finished for pair in found.pairs) else UNFINISHED

    raise typer.Exit(ended(command))


@app.command(cls=Command, epilog=EXAMPLES["demo"])
def demo(
    out: Annotated[Path, typer.Option(help="output folder")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="seed of the training and of the analysis")] = 0,
    top: given.Top = 3,
    bottom: given.Bottom = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more do not help so small a network")] = 1,
    quiet: given.Quiet = False,
) -> None:
    """Train a small network on digits, and analyse it.

    A residual network with BatchNorm, on 1,437 handwritten digits: every parameter's largest and smallest eigenvalue,
    and a page to look at. It takes about a minute.
    """

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


@app.command(cls=Command, epilog=EXAMPLES["doctor"])
def doctor(json: given.Json = False) -> None:
    """Check this machine: versions, devices, derivatives.

    Small networks of every kind that the library treats specially are differentiated twice and compared with
    differences of gradients. Exit code 0 if all are right, or known to be wrong somewhere and refused by the self-check
    of every analysis; else 1.
    """
    raise typer.Exit(ended(lambda: examine(json=json)))


@app.command(cls=Command, epilog=EXAMPLES["template"])
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
        plain(f"\nSaved in {folder}; the report is {folder / store.REPORT}")
    return DONE if analysis.converged else UNFINISHED


def _print_table(analysis: Any) -> None:
    """On stdout: as wide as the terminal and in colour; plain and 100 columns wide where it is not a terminal."""
    if sys.stdout.isatty():
        console(sys.stdout).print(renderable(analysis))
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
        plain("The learning rate was not judged: that takes the largest eigenvalue of the full Hessian.")
    elif spectrum is not None:
        sentence = compare_learning_rate(spectrum, learning_rate)
        plain(f"{sentence[0].upper()}{sentence[1:]}.")
    else:
        plain("The learning rate cannot be judged: no largest eigenvalue was asked for.")


def _rescued(error: Any) -> Exception:
    """Show numbers that could not be saved where they should, and save them elsewhere."""
    print(as_text(error.analysis, width_of(sys.stderr) or WIDTH), file=sys.stderr)
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
