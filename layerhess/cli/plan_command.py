"""``layerhess plan``: from a factory to a plan in a folder."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from layerhess.cli import options as given
from layerhess.cli.display import Display
from layerhess.cli.exit_codes import DONE, NAME, UNFINISHED, ended, stdout_on_stderr
from layerhess.cli.lines import console, plain, width_of, wrapped
from layerhess.cli.plan_question import arguments_of, exports_of
from layerhess.cli.question import objective_of
from layerhess.cli.running import default_folder, use_threads
from layerhess.errors import InputError
from layerhess.objective.group import launched
from layerhess.objective.objective import Objective
from layerhess.planning.export.export import export
from layerhess.planning.plan import plan as plan_now
from layerhess.results import plan_file, result_folder
from layerhess.results.plan import PlanRecord
from layerhess.show import plan as drawn
from layerhess.show.plan.table import WIDTH, as_text, renderable


def plan(
    factory: given.Factory,
    bits: given.Bits = "2,3,4,8",
    budget: given.Budget = "4bit",
    sparsity: given.Sparsity = None,
    metric: given.MetricOf = None,
    held_out: given.HeldOut = None,
    examples: given.Examples = None,
    device: given.Device = None,
    out: given.Out = None,
    json: given.Json = False,
    layers: given.Layers = "weight",
    granularity: given.Granularity = "channel",
    asymmetric: given.Asymmetric = False,
    scale: given.ScaleOf = "minmax",
    pin: given.Pin = None,
    allow: given.Allow = None,
    tie: given.Tie = None,
    criterion: given.Criterion = "measured",
    couplings: given.Couplings = "outputs",
    verify: given.Verify = True,
    curvature: given.Curvature = True,
    seed: given.PlanSeed = 0,
    batch_size: given.BatchSize = None,
    threads: given.Threads = None,
    checkpoint: given.Checkpoint = None,
    eval_mode: given.EvalMode = False,
    stop_gradients: given.StopGradients = None,
    examples_seed: given.ExamplesSeed = 0,
    export: given.Export = None,
    resume: given.Resume = False,
    traceback: given.Traceback = False,
    quiet: given.Quiet = False,
) -> None:
    """Decide which layer gets how many bits, within a budget.

    Every layer is measured with every option, interactions are taken from the same passes, and the best of several
    measured plans is held against uniform bits and HAWQ-V2's plan. A table, and a folder with plan.json and a page.
    Exit code 1: written, but something did not work, such as the metric.
    """
    asked = dict(locals())
    raise typer.Exit(ended(lambda: _plan(asked), show_traceback=traceback))


def _plan(options: Mapping[str, Any]) -> int:
    out: Path | None = options["out"]
    if options["resume"] and out is None:
        missing = "--resume needs the folder of the run that is to go on"
        raise InputError(missing, where="--out", what_to_do="give it with --out")
    exports = exports_of(options["export"] or ())
    folder = out if out is not None else default_folder(options["factory"], "plan")
    use_threads(options["threads"])
    with launched() as group, ExitStack() as stack:
        display = Display(quiet=options["quiet"] or group.rank > 0)
        if group.rank == 0:  # which writes and prints for all
            folder = result_folder.check_writable(folder, result_folder.PLAN)
        if options["json"]:
            stack.enter_context(stdout_on_stderr())
        stack.enter_context(display.with_warnings())
        objective = objective_of(options)
        arguments = arguments_of(options)
        found = planned(objective, arguments, folder, display)
        failures = handed_on(found, exports) if group.rank == 0 else 0
    if group.rank == 0:
        shown(found, folder, json=options["json"])
    unfinished = failures or (options["metric"] is not None and metric_failed(found))
    return UNFINISHED if unfinished else DONE


def planned(objective: Objective, arguments: Mapping[str, Any], folder: Path, display: Display) -> PlanRecord:
    """The plan, saved into the folder; how far it is shows on the display.

    Raises:
        InputError: as for :func:`layerhess.plan`; where it could not be saved, it is saved elsewhere.
    """
    display.heading = f"the result will be in {folder}"
    try:
        with display:
            return plan_now(objective, **arguments, out=folder, progress=display.passes)
    except plan_file.PlanSaveError as error:
        raise _rescued(error) from error


def handed_on(plan: PlanRecord, exports: Sequence[tuple[str, str]]) -> int:
    """Write what other libraries read; how many could not be written, each with a sentence on stderr."""
    failures = 0
    for kind, path in exports:
        try:
            export(plan, kind, path)
        except InputError as error:
            said = f"{NAME}: not exported to {kind}: {error}"
            print(wrapped(said, width_of(sys.stderr)), file=sys.stderr, flush=True)
            failures += 1
    return failures


def shown(plan: PlanRecord, folder: Path, *, json: bool) -> None:
    """Print the plan on stdout: as a table, or plan.json and nothing else."""
    if json:
        sys.stdout.write(result_folder.text_of(folder, result_folder.PLAN))
        sys.stdout.flush()
        return
    if sys.stdout.isatty():
        console(sys.stdout).print(renderable(plan))
    else:
        print(as_text(plan))
    plain(f"\nSaved in {folder}; the page is {folder / result_folder.REPORT}")


def metric_failed(plan: PlanRecord) -> bool:
    """Whether there is no metric of the plan."""
    return plan.metric is None or math.isnan(plan.metric.value)


def _rescued(error: plan_file.PlanSaveError) -> InputError:
    """Show a plan that could not be saved where it should, and save it elsewhere."""
    print(as_text(error.plan, width_of(sys.stderr) or WIDTH), file=sys.stderr)
    try:
        place = plan_file.save(error.plan, Path(tempfile.mkdtemp(prefix="layerhess-")) / "plan", drawn.page.as_html)
    except (InputError, OSError):
        return InputError(error.message, where=error.where, what_to_do="the numbers are above; nothing could be saved")
    return InputError(error.message, where=error.where, what_to_do=f"nothing is lost: the plan is in {place}")
