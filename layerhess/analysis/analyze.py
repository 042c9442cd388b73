"""The main function, ``layerhess.analyze``: certified eigenpairs of every layer and of the whole model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from layerhess.analysis.arguments import check_arguments
from layerhess.analysis.identity import versions
from layerhess.analysis.progress import Progress
from layerhess.analysis.result import Analysis
from layerhess.analysis.run import Run
from layerhess.analysis.unknown_torch import refuse_unless_right
from layerhess.checks.second_derivative import named_operations
from layerhess.errors import InputError, LayerhessError, ProcessError, add_note
from layerhess.objective.blocks import Scheme, partition
from layerhess.objective.group import world
from layerhess.objective.interrupts import STOPS, deferred_interrupts
from layerhess.objective.objective import Objective
from layerhess.objective.shares import same_question
from layerhess.objective.snapshot import preserved_random_state

OWN_SETTINGS = ("out", "device")  # of each rank


def analyze(
    objective: Objective,
    blocks: Scheme = "parameter",
    operator: str = "hessian",
    top: int = 1,
    bottom: int = 0,
    full: bool = True,
    trace: Any = False,
    diagonal: Any = False,
    density: Any = False,
    coupling: Any = False,
    tol: float = 1e-3,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    *,
    exclude: float | None = 0.05,
    copies: str = "search",
    sampling: bool = False,
    max_passes: int = 500,
    time_limit: float | None = None,
    method: str = "lanczos",
    path: str = "auto",
    memory: str | int | None = None,
    segments: Any = "auto",
    skip_failed: bool = False,
    learning_rate: float | None = None,
) -> Analysis:
    """Top and bottom eigenpairs of every diagonal block of the Hessian and of the full Hessian, with error bounds.

    The Hessian (or another matrix, see ``operator``) is that of the mean loss over the whole data set, (sum of losses)
    / (sum of counts). All blocks advance in lockstep: each step is one pass over the data for all of them, and blocks
    that have converged drop out. Before the first step a self-check tests the loss and the products; if it fails, the
    analysis is refused.

    Args:
        objective: model, data and loss.
        blocks: "parameter" (each tensor), "weight" (tensors with >= 2 dimensions), "module" (leaf module), "depth:K"
            (first K parts of the module path), a dict block name -> glob or list of globs, or a function
            (name, parameter) -> block name or None.
        operator: "hessian"; "gauss_newton" (:class:`layerhess.GaussNewton`); "empirical_fisher", one gradient per item,
            or "empirical_fisher:token", one per counted term (:class:`layerhess.EmpiricalFisher`).
        top, bottom: how many of the largest and of the smallest (algebraic) eigenvalues of each.
        full: also analyse the full Hessian of all trainable parameters.
        trace: the trace of each; True, or a :class:`layerhess.Trace` that says how accurate. diagonal, density,
            coupling: the same with :class:`layerhess.Diagonal`, :class:`layerhess.Density`, :class:`layerhess.Coupling`
            (the Frobenius norms of all H_bc). All of them share the passes.
        resume: go on with the run that was stopped while it wrote into ``out`` (from the beginning where there is none;
            a finished one gives its result at once). The numbers are those of a run that was never stopped.
        tol: relative tolerance: converged means error bound <= tol * max(|theta|, 0.1 ||A_b||), and:
        exclude: beyond the wanted pairs nothing above theta_i + exclude * max(|theta_i|, 0.1 ||A_b||) is left open for
            the i-th of the top, except with a probability of 1 % (mirrored at the bottom). None asks for nothing.
        copies: "search": the eigenvalues are counted with multiplicity; "unchecked": further copies of those found are
            not looked for, which saves products, and what is excluded is stated up to multiplicity.
        seed: of every random start; the same seed gives the same numbers.
        out: folder to save into; checked before any work. After Ctrl-C or SIGTERM a partial result is saved there.
        progress: receiver of events, see :class:`layerhess.analysis.progress.Progress`.
        sampling: also standard errors of eigenvalues and traces with respect to the data, which takes one more pass.
        max_passes: passes over the data. time_limit: seconds. After either the result so far is returned, marked
            partial.
        method: "lanczos", or "power" for power iteration (top=1, bottom=0).
        path: "auto": products from factors (each layer's inputs and output sensitivities) for the blocks where a check
            on a few examples allows them; "exact": exact products everywhere; "factors": refuse blocks where they are
            not allowed; "gram": the same, and the complete spectrum of every block from all its rows, which "auto" uses
            where that is the cheapest; "differences": of gradients, for what cannot be differentiated twice. Their
            error is measured and part of the bounds.
        memory: budget for graphs, factors and solvers' vectors, such as "8GiB" or a number of bytes; by default
            8 GiB or 2.5 training steps for graphs and factors, whichever is more, and never more than is free. Batches
            whose graph does not fit are cut into smaller ones, with the same result. Of a model on several devices all
            is counted as if it lay on the one that has least.
        segments: modules that keep their inputs only, and are computed anew by every product, which takes less memory
            and more time. "auto": the repeated blocks of the network, where the graph of one example does not fit its
            share of the budget; None: never; a list of module names or globs, such as ["layers.*"]: always. Those that
            cannot be repeated exactly are left out; the result's notes say so.
        skip_failed: analyse the blocks that pass the self-check and mark the others "refused".
        learning_rate: of your training: the report holds it against 2 / lambda_max. No number depends on it.

    Returns:
        :class:`layerhess.Analysis`.

    Raises:
        InputError: unusable arguments, model, data or loss. CheckError: the self-check failed, or a version of torch
            that was not checked is wrong.
        KeyboardInterrupt: or SystemExit(143) after SIGTERM, with the place of the partial result in its notes.

    Exceptions of the model, the loss or the data come through unchanged. In every case the model is as it was.

    >>> import torch, layerhess as lh
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> data = (torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double())
    >>> result = lh.analyze(lh.Objective(model, data, torch.nn.MSELoss()))
    >>> print(round(float(result.blocks["weight"].eigenvalues[0]), 9))      # 2 ||x||^2
    50.0
    """
    with world().together() as group:
        same_question({"resume": bool(resume)}, group)
        if resume and group.agreed(out is None):
            raise InputError(
                "resume=True needs the folder of the run that is to go on", where="out", what_to_do="give out= (--out)"
            )
        out = out if group.rank == 0 else None  # one of the ranks saves
        arguments = check_arguments(
            objective, operator=operator, top=top, bottom=bottom, full=full, tol=tol, seed=seed, out=out,
            max_passes=max_passes, time_limit=time_limit, method=method, path=path, memory=memory, resume=resume,
            progress=progress, exclude=exclude, copies=copies, trace=trace, diagonal=diagonal, density=density,
            coupling=coupling, sampling=sampling, segments=segments, learning_rate=learning_rate,
        )  # fmt: skip
        refuse_unless_right(objective.devices)
        divided = partition(objective.model, objective.parameters, objective.frozen, blocks)
        run = Run(objective, divided, blocks, arguments, progress, skip_failed)
        asked = {name: value for name, value in run.settings.items() if name not in OWN_SETTINGS}
        asked |= {f"the version of {package}": version for package, version in versions().items()}
        asked |= {f"block {block.name!r}": block.parameters for block in divided.blocks}
        same_question(asked | {"the number of threads": torch.get_num_threads()}, group)
        with ExitStack() as stack:
            run.checkpoint = stack.enter_context(deferred_interrupts())
            try:
                with objective.session(), named_operations(objective):
                    if (finished := run.look()) is not None:
                        run.resumption.ended()
                        return finished
                    run.prepare()
                    run.solve()
                run.checkpoint()
            except STOPS as stop:
                run.save_partial(stop)
                raise
            except LayerhessError as error:
                run.resumption.refused()
                if isinstance(error, ProcessError) and run.resumption.how:
                    add_note(error, f"{run.journal.passes} passes are kept{run.resumption.how}")
                raise
            finally:
                run.journal.close()
        analysis = run.result()
        if out is not None:
            try:
                with preserved_random_state():  # making the report imports modules that draw random numbers
                    analysis.save(out)
            except STOPS as stop:
                add_note(stop, f"the result was not saved{run.resumption.how}")
                raise
            if not analysis.partial:
                run.resumption.ended()
        return analysis
