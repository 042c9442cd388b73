"""The commands of the command line, with their options."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import layerhess
from layerhess.analysis.compare import compare as compare_now
from layerhess.analysis.estimate import estimate as estimate_now
from layerhess.analysis.result import rewrite_report, with_plan
from layerhess.cli import options as given
from layerhess.cli.accuracy import accuracy
from layerhess.cli.demo import ASKED, PEAK_LEARNING_RATE, PLANNED
from layerhess.cli.demo import build as build_demo
from layerhess.cli.display import Display, cost_sentences
from layerhess.cli.doctor import examine
from layerhess.cli.examples import EXAMPLES, TEMPLATE
from layerhess.cli.exit_codes import DONE, UNFINISHED, ended, stdout_on_stderr
from layerhess.cli.help import Command, Commands
from layerhess.cli.lines import console, plain
from layerhess.cli.plan_command import metric_failed, plan, planned, shown
from layerhess.cli.question import NO_COST, arguments_of, objective_of, with_options_of
from layerhess.cli.running import checked_rate, default_folder, run, use_threads
from layerhess.errors import InputError
from layerhess.objective.group import launched
from layerhess.objective.objective import Objective
from layerhess.results import plan_file, store
from layerhess.show.comparison import table as comparison_table

app = typer.Typer(
    cls=Commands,
    epilog=EXAMPLES[""],
    help="Hessian eigenvalues of every layer of a PyTorch model, and of the whole model, each with an error bound.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    density_axis: given.DensityAxis = None,
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
    folder = out if out is not None else default_folder(options["factory"])
    use_threads(options["threads"])
    with launched() as group:
        if group.rank == 0:  # which writes and prints for all
            folder = store.check_writable(folder)
        return run(
            lambda: objective_of(options),
            arguments,
            folder,
            quiet=options["quiet"],
            json=options["json"],
            offer_examples=options["examples"] is None,
            learning_rate=checked_rate(options["learning_rate"]),
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
        use_threads(options["threads"])
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


app.command("plan", cls=Command, epilog=EXAMPLES["plan"])(plan)


@app.command(cls=Command, epilog=EXAMPLES["report"])
def report(folder: given.Folder) -> None:
    """Make the page of a saved analysis, or of a plan, anew."""

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
    """Train a small network on digits, analyse it, and plan its bits.

    A residual network with BatchNorm, on 1,437 handwritten digits: every parameter's largest and smallest eigenvalue,
    bits for every layer, and a page to look at. It takes about a minute.
    """

    def command() -> int:
        folder = store.check_writable(out)
        use_threads(threads)
        display, made = Display(quiet=quiet), []

        def objective() -> Objective:
            problem = build_demo(seed, display.say)
            made.append((problem, Objective(problem.model, problem.batches, nn.CrossEntropyLoss())))
            return made[0][1]

        rate = PEAK_LEARNING_RATE
        asked = {"top": top, "bottom": bottom, "seed": seed, "learning_rate": rate, **ASKED}
        options: Any = {"quiet": quiet, "offer_examples": False, "learning_rate": rate}
        code = run(objective, asked, folder, **options)
        problem, subject = made[0]
        if code == UNFINISHED:  # a digit on a kink of a ReLU: each machine trains other weights, and few have one
            plain("\nfloat32 leaves something open: once more in float64.\n")
            code = run(problem.in_float64, asked, folder, **options)
        plain("\nWhich layer could do with how many bits? At 4 bits in the mean, judged on digits held out:\n")
        wanted = {**PLANNED, "metric": accuracy, "held_out": problem.held_out, "seed": seed}
        with display.with_warnings():
            found = planned(subject, wanted, folder / plan_file.INSIDE, display)
        with_plan(folder, found)
        shown(found, folder / plan_file.INSIDE, json=False)
        return code or (UNFINISHED if metric_failed(found) else DONE)

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
