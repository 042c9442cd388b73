"""Takes what training put around a model off it: wrappers, shards of its weights, autocast around its forward.

What is analysed is the user's own module with whole weights. Wrappers on the outside are simply left out. For those
inside, and for sharded weights, a plain twin is made: the same modules in the same places, with wrappers, their hooks
and their shards replaced by what they stand for. The user's model is never touched.
"""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import InputError

# Attribute that holds the module inside, by the wrapper's class; subclasses count.
_INSIDE = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "DeepSpeedEngine": "module",
    "_FabricModule": "_forward_module",  # Lightning Fabric
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}
_MAKERS = ("torch.", "deepspeed.", "lightning.", "lightning_fabric.")
_ORIGINAL_FORWARD = "_original_forward"  # accelerate keeps it there when it puts autocast around forward
_STATE = "__composable_api_state_key"  # what fully_shard and its like keep in a module, as an attribute
_CONTAINERS = (list, tuple, set, dict, OrderedDict, defaultdict, deque)
AUTOCAST_OFF = "accelerate's mixed precision is off during the analysis: the weights' own precision is used"
FABRIC_OFF = "Fabric's mixed precision is off during the analysis: the weights' own precision is used"
POLICY_OFF = "FSDP's MixedPrecisionPolicy is off during the analysis: the weights' own precision is used"
GATHERED = "the weights are sharded: while they are analysed, every process holds all of them, twice"


def inside(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper holds; None if this is no wrapper."""
    for kind in type(module).__mro__:
        name = _INSIDE.get(kind.__name__)
        if name is not None and kind.__module__.startswith(_MAKERS):
            held = getattr(module, name, None)
            return held if isinstance(held, nn.Module) else None
    return None


def unwrapped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module inside all wrappers, and a sentence for each.

    Raises:
        InputError: weights that are flattened, or partitioned by DeepSpeed, and cannot be gathered here.
    """
    _refuse_flattened(model)
    said = []
    while (held := inside(model)) is not None:
        if any(kind.__name__ == "OptimizedModule" for kind in type(model).__mro__):
            said.append("the model was compiled: the module inside torch.compile is analysed, eagerly")
        else:
            precision = getattr(getattr(getattr(model, "_strategy", None), "precision", None), "precision", "")
            said += [FABRIC_OFF] if str(precision).endswith("mixed") else []
            said.append(f"the model was wrapped in {type(model).__name__.lstrip('_')}: the module inside is analysed")
        model = held
    return model, said


def _refuse_flattened(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise InputError(
                "FullyShardedDataParallel (FSDP1) holds the weights as pieces of flat vectors",
                where=name or type(model).__name__,
                what_to_do="shard with torch.distributed.fsdp.fully_shard (FSDP2; fsdp_version: 2 of accelerate), or "
                "load a full checkpoint into the plain model",
            )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_tensor"):
            raise InputError(
                f"the parameter {name!r} is partitioned by DeepSpeed (ZeRO-3)",
                where=name,
                what_to_do="use ZeRO-1 or 2, or load a full checkpoint (zero_to_fp32.py) into the plain model",
            )


def is_sharded(tensor: Any) -> bool:
    """Whether each process holds a part of it (torch's DTensor)."""
    made = sys.modules.get("torch.distributed.tensor")
    return made is not None and isinstance(tensor, made.DTensor)


def needs_twin(model: nn.Module) -> bool:
    """Whether parts of an unwrapped model are wrapped or sharded, or run under autocast of accelerate's."""
    return any(
        inside(module) is not None
        or _plain_class(module) is not type(module)
        or _ORIGINAL_FORWARD in module.__dict__
        or any(is_sharded(tensor) for tensor in (*module._parameters.values(), *module._buffers.values()))
        for module in model.modules()
    )


class PlainTwin:
    """The same model without wrappers and hooks of torch.distributed, with whole weights.

    Tensors that are whole already are shared with the user's model. The others exist within :meth:`filled` only;
    between sessions every number of theirs is NaN, and takes no memory.

    Attributes:
        model: the twin; the same object for ever. notes: what was taken off.
    """

    def __init__(self, source: nn.Module) -> None:
        self._source = source
        self._twins: dict[int, nn.Module] = {}
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}  # a sharded tensor, and its whole one
        self._depth = 0
        self._renew()
        self.model = self._twin_of(source)
        self.notes = [AUTOCAST_OFF] if any(_ORIGINAL_FORWARD in m.__dict__ for m in source.modules()) else []
        self.notes += [GATHERED] if self._whole else []
        self.notes += [POLICY_OFF] if any(_works_in_another_precision(m) for m in source.modules()) else []

    @property
    def sharded(self) -> bool:
        """Whether weights are gathered."""
        return bool(self._whole)

    @property
    def original(self) -> nn.Module | None:
        """The user's model, where tensor parallelism alone shards it, so that all ranks can run it on one batch."""
        return self._source if self.copies > 1 and not any(map(_fsdp_state, self._source.modules())) else None

    @property
    def copies(self) -> int:
        """How many ranks are given the same data: those that hold the weights of one layer (tensor parallelism)."""
        meshes = [shard.device_mesh.size() for shard, _ in self._whole.values()]  # type: ignore[attr-defined]
        groups = [g for m in self._source.modules() for g in getattr(_fsdp_state(m), "_fsdp_param_groups", ())]
        sharing = max((group.mesh_info.mesh.size() for group in groups), default=1)
        return max(1, max(meshes, default=1) // sharing)

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Inside, the twin is as the user's model is now; all processes that hold shards enter it. Re-entrant."""
        if self._depth:
            yield
            return
        self._depth = 1
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._renew()
                for shard, whole in self._whole.values():
                    whole.data = _gathered(shard)
            yield
        finally:
            for _, whole in self._whole.values():
                whole.data = _nothing(whole)
            self._depth = 0

    def _renew(self) -> None:
        """Bring the modules' attributes up to date: modes, buffers, counters may have changed since."""
        modules = list(self._source.modules())
        for module in modules:
            if callable(reshard := getattr(module, "reshard", None)) and _plain_class(module) is not type(module):
                reshard()  # FSDP2 keeps weights whole between some passes: what it holds then is a copy
        known: dict[int, Any] = {id(module): self._twin_of(module) for module in modules}
        for module in modules:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    known[id(tensor)] = self._whole_of(tensor)
        for module in modules:
            twin = known[id(module)]
            if twin is not module and inside(module) is None:
                twin.__dict__.clear()
                twin.__dict__.update(_plain_attributes(module, known))

    def _twin_of(self, module: nn.Module) -> nn.Module:
        while (held := inside(module)) is not None:
            module = held
        if isinstance(module, torch.jit.ScriptModule):
            return module
        if id(module) not in self._twins:
            cls = _plain_class(module)
            self._twins[id(module)] = cls.__new__(cls)
        return self._twins[id(module)]

    def _whole_of(self, tensor: Tensor) -> Tensor:
        if not is_sharded(tensor):
            return tensor
        if id(tensor) not in self._whole:
            whole = _nothing(tensor)
            if isinstance(tensor, nn.Parameter):
                whole = nn.Parameter(whole, requires_grad=tensor.requires_grad)
            self._whole[id(tensor)] = tensor, whole
        whole = self._whole[id(tensor)][1]
        if whole.requires_grad != tensor.requires_grad:
            whole.requires_grad_(tensor.requires_grad)
        return whole


def _gathered(shard: Any) -> Tensor:
    """All of a sharded tensor; never the memory of the shard itself."""
    own = shard.to(_device_of(shard))  # offloaded ones too are exchanged where the processes compute
    full: Tensor = own.full_tensor()
    return full.clone() if full.data_ptr() == shard.to_local().data_ptr() else full


def _device_of(shard: Any) -> torch.device:
    """Where a sharded tensor's whole one lies: the shard may be kept in main memory (CPUOffloadPolicy)."""
    local: torch.device = shard.to_local().device
    kind = shard.device_mesh.device_type
    if local.type in (kind, "meta"):
        return local
    return torch.device(kind, torch.get_device_module(kind).current_device())


def _nothing(tensor: Tensor) -> Tensor:
    """NaN of the tensor's shape, in the memory of one number."""
    device = _device_of(tensor) if is_sharded(tensor) else tensor.device
    one = torch.zeros((), dtype=tensor.dtype, device=device)
    return (one.fill_(torch.nan) if tensor.is_floating_point() else one).expand(tensor.shape)


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The user's class, where torch.distributed has put one of its own in its place (fully_shard, replicate)."""
    cls = type(module)
    while _is_distributed(cls.__module__) and len(cls.__bases__) == 2 and inside(module) is None:
        cls = cls.__bases__[1]
    return cls


def _fsdp_state(module: nn.Module) -> Any:
    """What fully_shard keeps of a module; None of others."""
    return module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None  # type: ignore[operator]


def _works_in_another_precision(module: nn.Module) -> bool:
    dtype = getattr(getattr(_fsdp_state(module), "_mp_policy", None), "param_dtype", None)
    return dtype is not None and any(p.dtype != dtype for p in module.parameters())


def _is_distributed(name: str | None) -> bool:
    return (name or "").startswith("torch.distributed")


def _plain_attributes(module: nn.Module, known: dict[int, Any]) -> dict[str, Any]:
    """A module's attributes for its twin: other modules and tensors are replaced by those that are ``known``."""
    made: dict[str, Any] = {}
    for name, value in list(module.__dict__.items()):
        if name.startswith(_STATE):
            continue
        if name.endswith("_hooks") and isinstance(value, dict):
            hooks = {key: hook for key, hook in value.items() if not _is_distributed(_maker(hook))}
            made[name] = OrderedDict((key, _mapped(hook, known)) for key, hook in hooks.items())
        elif name == "_compiled_call_impl":
            made[name] = None  # it would run the user's module
        elif name not in ("forward", _ORIGINAL_FORWARD) or _ORIGINAL_FORWARD not in module.__dict__:
            made[name] = _mapped(value, known)
    original = module.__dict__.get(_ORIGINAL_FORWARD)
    if original is not None and getattr(original, "__func__", None) is not type(module).forward:
        made["forward"] = _mapped(original, known)  # it was an attribute of the module before
    return made


def _maker(hook: Any) -> str | None:
    """The Python module that a hook comes from."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    owner = getattr(hook, "__self__", None)
    if owner is not None and not isinstance(owner, nn.Module):
        return type(owner).__module__
    return getattr(hook, "__module__", None)


def _mapped(value: Any, known: dict[int, Any], depth: int = 6) -> Any:
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, MethodType) and id(value.__self__) in known:
        return MethodType(value.__func__, known[id(value.__self__)])
    if type(value) is functools.partial:
        bound = functools.partial(value.func, *_mapped(value.args, known), **_mapped(value.keywords, known))
        bound.__dict__.update(_mapped(value.__dict__, known))
        return bound
    if type(value) not in _CONTAINERS or not depth:
        return value
    if isinstance(value, dict):
        made = type(value)(value.default_factory) if isinstance(value, defaultdict) else type(value)()
        known[id(value)] = made  # two modules may hold the same one
        made.update((key, _mapped(item, known, depth - 1)) for key, item in value.items())
        return made
    items = (_mapped(item, known, depth - 1) for item in value)
    known[id(value)] = deque(items, value.maxlen) if isinstance(value, deque) else type(value)(items)
    return known[id(value)]
