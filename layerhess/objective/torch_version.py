"""What torch has to be: the oldest one, those that were checked, the private names used, and where torch is wrong.

All that depends on a version of torch stands here. Importing this module refuses a torch that is too old, or that lacks
a name which the package imports; the package does that first.
"""

from __future__ import annotations

import functools
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

OLDEST = "2.7"
# Release -> the Pythons under which all tests passed, each with the wheels for Linux on x86-64, on its CPU.
CHECKED: dict[str, tuple[str, ...]] = {
    "2.7.0": ("3.10",),
    "2.13.0": ("3.10", "3.11", "3.13"),
}
REQUIREMENT = f"torch>={OLDEST},<={max(CHECKED, key=lambda name: tuple(map(int, name.split('.'))))}"
CHECKED_ON = ("Linux", "x86_64", "cpu")
COMMANDS = ("layerhess", "-m")  # sys.argv[0] without its suffix, while the command line imports the package
UNUSABLE = 2  # exit code


@dataclass(frozen=True)
class Private:
    """Names of torch that no version promises.

    Attributes:
        owner: a module of torch by its path, or a key of :data:`SAMPLES`. names: its attributes.
        use: what depends on them. otherwise: what happens without them; "": torch is refused.
    """

    owner: str
    names: tuple[str, ...]
    use: str
    otherwise: str = ""


@dataclass(frozen=True)
class Fault:
    """Where torch is wrong, or has no derivative: docs/explanation/versions.md says in which releases.

    Attributes:
        what: the function. fault: what is wrong. instead: what is done. nodes: of autograd that are wrong.
        refused: nothing is put in its place: the self-check sees it, and refuses.
    """

    what: str
    fault: str
    instead: str
    nodes: tuple[str, ...] = ()
    refused: bool = False


PRIVATE = (
    Private("torch", ("_foreach_copy_", "_foreach_norm"), "one call for the values of all parameters"),
    Private("torch._C", ("DisableTorchFunction", "DisableTorchFunctionSubclass"), "calls that no mode sees"),
    Private("torch._C", ("_will_engine_execute_node",), "which derivatives are wanted", "all of them are computed"),
    Private(
        "torch._C._functorch", ("is_functorch_wrapped_tensor", "is_legacy_batchedtensor", "peek_interpreter_stack"),
        "whether a transform of torch.func is under way",
    ),
    Private("torch._C._nn", ("hardsigmoid", "hardsigmoid_"), "a form that can be differentiated twice"),
    Private("torch.autograd.forward_ad", ("_current_level",), "whether forward mode is under way"),
    Private("torch.nn._reduction", ("legacy_get_string",), "older arguments of binary cross entropy"),
    Private("torch.nn.modules.batchnorm", ("_BatchNorm", "_NormBase"), "which modules have running statistics"),
    Private("torch.nn.modules.conv", ("_ConvNd",), "which models have convolutions"),
    Private("torch.nn.modules.dropout", ("_DropoutNd",), "which modules draw random numbers"),
    Private("torch.ops.aten", ("_softmax_backward_data",), "the softmax's own derivative"),
    Private("torch.overrides", ("_get_current_function_mode_stack",), "segments run again under the same modes"),
    Private("torch.utils._python_dispatch", ("TorchDispatchMode",), "memory is counted"),
    Private("torch.utils._pytree", ("SUPPORTED_NODES", "tree_map_only"), "what batches are made of"),
    Private("torch.distributed.distributed_c10d", ("_get_default_store",), "what ranks leave for each other"),
    Private(
        "a module",
        ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
         "_backward_pre_hooks"),
        "the model comes back as it was",
    ),
    Private("a module", ("_compiled_call_impl",), "module.compile() is seen", "compiled code is run eagerly anyway"),
    Private("a tensor", ("_backward_hooks", "_post_accumulate_grad_hooks"), "the model comes back as it was"),
    Private("a tensor", ("_version",), "changes in place are seen"),
    Private("a tensor", ("_is_view",), "segments return what they returned"),
    Private("a sparse tensor", ("_values",), "NaN and infinity are seen"),
    Private("a storage", ("_cdata",), "memory is counted"),
    Private("MulBackward0", ("_sequence_nr",), "which module an operation belongs to"),
    Private("MulBackward0", ("_input_metadata",), "the coarsest dtype, on which thresholds depend"),
    Private("NativeGroupNormBackward0", ("_saved_input",), "a GroupNorm that would end the process is refused"),
    Private("NativeLayerNormBackwardBackward0", ("name",), "a loss with its third derivative is refused"),
    Private("NativeBatchNormBackwardBackward0", ("_saved_train",), "a loss with its third derivative is refused"),
    Private("LogSoftmaxBackward0", ("_saved_result", "_saved_dim"), "saturated outputs are seen"),
    Private("BinaryCrossEntropyWithLogitsBackward0", ("_saved_self",), "saturated outputs are seen"),
    *(
        Private(f"{kind}Backward0", (saved,), "saturated probabilities are seen")
        for kind, saved in {
            "Log": "_saved_self", "Log2": "_saved_self", "Log10": "_saved_self", "Log1P": "_saved_self",
            "Logit": "_saved_self", "SpecialEntr": "_saved_self", "Xlogy": "_saved_other",
            "SpecialXlog1Py": "_saved_other",
        }.items()
    ),
    Private(
        "a wrapper", ("_orig_mod", "_checkpoint_wrapped_module", "_get_fsdp_state", "_fsdp_param_groups", "_mp_policy"),
        "torch's wrappers around a module are taken off", "what is left is a module like others, and checked as such",
    ),
    Private("a quantised module", ("_packed_params",), "such weights are not planned", "there are none to be seen"),
)  # fmt: skip

FAULTS = (
    Fault("weight_norm", "wrong second derivative", "refused by the self-check", refused=True),
    Fault(
        "layer norm", "wrong third derivative; wrong second one by reverse over forward",
        "a form of our own; refused where that cannot be used", nodes=("NativeLayerNormBackwardBackward",),
    ),
    Fault(
        "batch norm", "wrong third derivative; wrong second one by reverse over forward",
        "a form of our own; refused where that cannot be used",
        nodes=("NativeBatchNormBackwardBackward", "CudnnBatchNormBackwardBackward"),
    ),
    Fault("instance norm", "wrong gradient of a single example, and wrong third derivative", "as a group norm"),
    Fault("group norm", "ends the process, or fails, where only the bias has a derivative", "contiguous inputs"),
    Fault("binary cross entropy", "wrong second derivative of probabilities near 0 and 1", "a form of our own"),
    Fault("hardsigmoid", "no second derivative", "as a clamp"),
    Fault("attention", "fused kernels have no second derivative", "torch's MATH kernels"),
    Fault("recurrent layers on GPUs", "cuDNN's have no second derivative", "torch's own"),
    Fault("DTensor", "wrong second derivative of column-wise shards", "every process holds whole weights"),
)  # fmt: skip


def release(version: str | None = None) -> str:
    """The release in a version of torch: "2.13.0" of "2.13.0+cpu"; alphas and builds of a day stay what they are."""
    return str(torch.__version__ if version is None else version).partition("+")[0]


def is_checked(device: str) -> bool:
    """Whether this release was checked on this kind of machine and device."""
    return release() in CHECKED and (platform.system(), platform.machine(), device) == CHECKED_ON


def missing(everywhere: bool = True) -> list[str]:
    """The names of :data:`PRIVATE` that this torch lacks and nothing replaces, each with its owner.

    Args:
        everywhere: those of objects too, which are made for that; False: those of modules only.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return [
            f"{name} of {row.owner}" if row.owner in SAMPLES else f"{row.owner}.{name}"
            for row in PRIVATE
            if not row.otherwise and (everywhere or row.owner not in SAMPLES)
            for name in _lacking(row)
        ]


def _lacking(row: Private) -> Iterator[str]:
    """The names of one row that are not there."""
    try:
        owner = SAMPLES[row.owner]() if row.owner in SAMPLES else functools.reduce(getattr, _path(row.owner), torch)
    except AttributeError:
        owner = None
    yield from (name for name in row.names if not hasattr(owner, name))


def _path(owner: str) -> list[str]:
    return owner.split(".")[1:]


def _node(kind: str, function: Callable[[Tensor], Tensor], slope: bool = False) -> Callable[[], Any]:
    """Makes the autograd node of this name behind a function's result, or behind its slope; AttributeError without."""

    def made() -> Any:
        x = torch.tensor([[0.25, 0.5]], requires_grad=True)
        y = function(x).square().sum()
        todo: list[Any] = [torch.autograd.grad(y, x, create_graph=True)[0].grad_fn if slope else y.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node.name() == kind:
                return node
            todo += [] if node is None else [following for following, _ in node.next_functions]
        raise AttributeError(kind)

    return made


NODES: dict[str, Callable[[Tensor], Tensor]] = {
    "MulBackward0": lambda x: x * x,
    "NativeGroupNormBackward0": lambda x: functional.group_norm(x, 1),
    "NativeLayerNormBackwardBackward0": lambda x: functional.layer_norm(x, (2,)),
    "NativeBatchNormBackwardBackward0": lambda x: functional.batch_norm(x.T, None, None, training=True),
    "LogSoftmaxBackward0": lambda x: x.log_softmax(1),
    "BinaryCrossEntropyWithLogitsBackward0": lambda x: functional.binary_cross_entropy_with_logits(x, x.detach()),
    "LogBackward0": torch.log,
    "Log2Backward0": torch.log2,
    "Log10Backward0": torch.log10,
    "Log1PBackward0": torch.log1p,
    "LogitBackward0": torch.logit,
    "SpecialEntrBackward0": torch.special.entr,
    "XlogyBackward0": lambda x: torch.xlogy(1.0, x) + torch.xlogy(x, x),
    "SpecialXlog1PyBackward0": lambda x: torch.special.xlog1py(x, x),
}  # fmt: skip
SAMPLES: dict[str, Callable[[], Any]] = {
    "a module": nn.Identity,
    "a tensor": lambda: torch.zeros(1),
    "a sparse tensor": lambda: torch.eye(1).to_sparse(),
    "a storage": lambda: torch.zeros(1).untyped_storage(),
}
SAMPLES |= {name: _node(name, function, slope=name.count("Backward") > 1) for name, function in NODES.items()}


def _refuse_unusable() -> None:
    """Say in one sentence why this torch cannot be used, as an ImportError; the command line ends with it."""
    numbers = re.findall(r"\d+", release())[:2]
    needed = tuple(map(int, OLDEST.split(".")))
    said = ""
    if len(numbers) == 2 and tuple(map(int, numbers)) < needed:
        said = f"layerhess needs torch {OLDEST} or newer, and this is torch {torch.__version__}"
    elif gone := missing(everywhere=False):
        said = f"torch {torch.__version__} lacks {', '.join(gone[:3])}, which layerhess uses"
    if not said:
        return
    said += f": python -m pip install {shlex.quote(REQUIREMENT)}"
    if Path((sys.argv or [""])[0]).stem in COMMANDS:
        print(said, file=sys.stderr)
        raise SystemExit(UNUSABLE)
    raise ImportError(said)


_refuse_unusable()
