"""A plan done to models: all of it or nothing, and torchao's tensors bit-equal to the fake ones."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from layerhess.errors import CheckError, InputError
from layerhess.planning.weights import apply as module_of_apply
from layerhess.planning.weights.applied import changed
from layerhess.planning.weights.apply import apply_plan
from layerhess.planning.weights.torchao_library import torchao
from layerhess.results.options import Function, Prune, Quantize, option_of
from plans import plan_of


class Small(nn.Module):
    """An embedding, a convolution, a recurrent layer, two linear ones."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 32)
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.hidden = nn.Linear(128, 24)
        self.rnn = nn.GRU(24, 16, batch_first=True)
        self.head = nn.Linear(16, 5)
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        images = self.embedding(tokens).reshape(len(tokens), 2, 4, -1)
        hidden = self.hidden(self.conv(images).relu().flatten(1))
        return self.head(self.rnn(hidden[:, None])[0][:, 0])


TOKENS = torch.tensor([[1], [5], [10]])
CHOICE = {
    "embedding.weight": Quantize(3, "group:8", symmetric=False),
    "conv.weight": Quantize(4),
    "hidden.weight": Quantize(4, scale="mse"),
    "rnn.weight_ih_l0": Quantize(8),
    "head.weight": Quantize(2),
}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_plan_changes_its_weights_in_place_and_nothing_else() -> None:
    model = Small()
    before, parameters = state(model), dict(model.named_parameters())
    assert apply_plan(model, plan_of(model, CHOICE)) == []
    assert dict(model.named_parameters()) == parameters  # the same objects
    for name, old in before.items():
        expected = changed(CHOICE[name], old) if name in CHOICE else old
        assert torch.equal(model.state_dict()[name], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao_holds_bit_equal_weights_and_the_rest_stays_fake(dtype: torch.dtype) -> None:
    pytest.importorskip("torchao")
    fake = Small(dtype)
    real = copy.deepcopy(fake)
    plan = plan_of(fake, CHOICE)
    apply_plan(fake, plan)
    assert apply_plan(real, plan, backend="torchao") == ["rnn.weight_ih_l0"]
    for name, weight in fake.named_parameters():
        other = real.get_parameter(name)
        if name in CHOICE and not name.startswith("rnn"):
            assert type(other).__name__ == "IntxUnpackedToInt8Tensor"
            assert torch.equal(other.dequantize().view(torch.uint8), weight.detach().view(torch.uint8))
            assert not other.requires_grad
            assert other.qdata.dtype == torch.int8
        else:
            assert torch.equal(other, weight)
    with torch.no_grad():
        torch.testing.assert_close(real(TOKENS), fake(TOKENS), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_torchao_takes_all_that_fits_in_eight_bits(bits: int) -> None:
    """Of linear, convolution and embedding layers: any granularity, symmetric or not, either scale."""
    pytest.importorskip("torchao")
    for granularity in ("channel", "tensor", "group:1", "group:2"):
        for symmetric in (True, False):
            for scale in ("minmax", "mse"):
                model = Small()
                option = Quantize(bits, granularity, symmetric, scale)
                plan = plan_of(model, dict.fromkeys(["embedding.weight", "conv.weight", "head.weight"], option))
                assert apply_plan(model, plan, backend="torchao") == []
                model(TOKENS)


def test_what_torchao_cannot_hold_is_listed_and_stays_fake() -> None:
    pytest.importorskip("torchao")
    model = Small()
    choice = {
        "embedding.weight": Quantize(12),
        "conv.weight": Prune(0.5),
        "hidden.weight": Prune("2:4"),
        "rnn.weight_hh_l0": Quantize(4),
        "head.weight": option_of(torch.sign),
    }
    expected = {name: changed(option, model.get_parameter(name)) for name, option in choice.items()}
    assert apply_plan(model, plan_of(model, choice), backend="torchao") == list(choice)
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in expected.items())
    double = Small(torch.float64)
    assert apply_plan(double, plan_of(double, {"head.weight": 4}), backend="torchao") == ["head.weight"]


def test_layers_that_use_their_weight_in_another_way_are_not_given_to_torchao() -> None:
    pytest.importorskip("torchao")

    class Transposed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    model = nn.Sequential(nn.Embedding(9, 8, max_norm=1.0), Transposed(8, 8), nn.Conv1d(3, 4, 1))
    names = ["0.weight", "1.weight", "2.weight"]
    assert apply_plan(model, plan_of(model, dict.fromkeys(names, Quantize(4))), backend="torchao") == names
    model[1](torch.ones(2, 8))


@pytest.mark.parametrize("train", [False, True])
def test_torchs_attention_runs_afterwards(train: bool) -> None:
    """It hands the weight of its output projection to a function of its own, which transposes it."""
    pytest.importorskip("torchao")
    fake = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).train(train)
    real = copy.deepcopy(fake)
    plan = plan_of(fake, {name: Quantize(4) for name, weight in fake.named_parameters() if weight.ndim == 2})
    apply_plan(fake, plan)
    assert apply_plan(real, plan, backend="torchao") == ["self_attn.in_proj_weight", "self_attn.out_proj.weight"]
    x = torch.randn(2, 5, 16)
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(real(x), fake(x), rtol=1e-5, atol=1e-6)


def test_a_version_of_torchao_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("torchao") and torchao("test")

    def failing(*args: object, **options: object) -> None:
        raise NotImplementedError("not yet")

    model = Small()
    before = state(model)
    monkeypatch.setattr(library, "quantize_", failing)
    monkeypatch.setattr(module_of_apply, "torchao", lambda where: library)
    with pytest.raises(
        InputError, match=r"torchao [\d.]+\S* cannot make what was planned: NotImplementedError: not yet"
    ):
        apply_plan(model, plan_of(model, CHOICE | {"hidden.weight": Quantize(4)}), backend="torchao")
    assert same(state(model), before)


def test_a_torchao_model_is_saved_and_loaded() -> None:
    pytest.importorskip("torchao")
    model = Small()
    apply_plan(model, plan_of(model, CHOICE), backend="torchao")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Small()
    other.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert torch.equal(other(TOKENS), model(TOKENS))


def test_convolutions_stored_channels_last_are_taken_too() -> None:
    pytest.importorskip("torchao")
    fake = Small().to(memory_format=torch.channels_last)
    real = copy.deepcopy(fake)
    plan = plan_of(fake, {"conv.weight": Quantize(4, "group:2"), "hidden.weight": Quantize(4)})
    apply_plan(fake, plan)
    assert apply_plan(real, plan, backend="torchao") == []
    assert torch.equal(real.conv.weight.dequantize(), fake.conv.weight)
    assert fake.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["fake", "torchao"])
def test_tied_weights_stay_tied(backend: str) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchao")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=30, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    plan = plan_of(model, {"transformer.wte.weight": Quantize(4), "transformer.h.0.mlp.c_fc.weight": Quantize(4)})
    assert plan.weights[0].aliases == ("lm_head.weight",)
    expected = changed(Quantize(4), model.lm_head.weight)
    left = apply_plan(model, plan, backend=backend)
    assert left == ([] if backend == "fake" else ["transformer.h.0.mlp.c_fc.weight"])  # a Conv1D of its own
    assert model.lm_head.weight is model.transformer.wte.weight
    held = model.lm_head.weight if backend == "fake" else model.lm_head.weight.dequantize()
    assert torch.equal(held, expected)
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize("backend", ["fake", "torchao"])
def test_wrappers_around_a_model_are_looked_through(backend: str) -> None:
    pytest.importorskip("torchao")
    plain = Small()
    expected = state(plain)
    expected["head.weight"] = changed(Quantize(4), plain.head.weight)
    plan = plan_of(plain, {"head.weight": Quantize(4)})
    for wrapper in (torch.compile, nn.DataParallel):
        model = copy.deepcopy(plain)
        apply_plan(wrapper(model), plan, backend=backend)
        held = model.head.weight if backend == "fake" else model.head.weight.dequantize()
        assert torch.equal(held, expected["head.weight"])


def test_checkpointed_parts_inside_a_model_are_looked_through() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    pytest.importorskip("torchao")
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    plan = plan_of(model, {"0.weight": 4, "2.weight": 3})
    expected = changed(Quantize(4), model[0].weight)
    model[0] = checkpoint_wrapper(model[0])
    assert apply_plan(model, plan, backend="torchao") == []
    assert torch.equal(model[0]._checkpoint_wrapped_module.weight.dequantize(), expected)
    model(torch.ones(2, 8))


def weight_normed() -> nn.Module:
    model = Small()
    nn.utils.parametrizations.weight_norm(model.head)
    return model


def old_weight_normed() -> nn.Module:
    model = Small()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.head)
    return model


def not_a_number() -> nn.Module:
    model = Small()
    model.head.weight.data[0, 0] = torch.nan
    return model


def in_integers() -> nn.Module:
    model = Small()
    model.head.weight = nn.Parameter(torch.ones(5, 16, dtype=torch.int8), requires_grad=False)
    return model


def dynamically_quantized() -> nn.Module:
    torch.backends.quantized.engine = next(e for e in torch.backends.quantized.supported_engines if e != "none")
    return torch.ao.quantization.quantize_dynamic(Small(), {nn.Linear})


def applied_before() -> nn.Module:
    model = Small()
    apply_plan(model, plan_of(model, {"head.weight": 3}))
    return model


def in_torchao() -> nn.Module:
    pytest.importorskip("torchao")
    model = Small()
    apply_plan(model, plan_of(model, {"head.weight": 4}), backend="torchao")
    return model


def on_meta() -> nn.Module:
    return Small().to("meta")


def wider() -> nn.Module:
    model = Small()
    model.head = nn.Linear(16, 6)
    return model


REFUSED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (lambda: nn.Linear(3, 3), "head.weight", "another model than this Linear: it has no weights 'head.weight'"),
    (wider, "head.weight", r"head.weight is \(6, 16\) here and \(5, 16\) in the plan"),
    (in_integers, "head.weight", "dtype int8: quantised already"),
    (in_torchao, "head.weight", "quantised already: they are a IntxUnpacked"),
    (applied_before, "head.weight", "rounded to few values already"),
    (not_a_number, "head.weight", "infinite or NaN"),
    (on_meta, "head.weight", "meta device"),
]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["fake", "torchao"])
@pytest.mark.parametrize(
    ("made", "name", "said"), [*REFUSED, (dynamically_quantized, "head.weight", "quantised already")]
)
def test_a_model_that_the_plan_is_not_for_is_refused_and_stays(
    made: Callable[[], nn.Module], name: str, said: str, backend: str
) -> None:
    model = made()
    plan = plan_of(Small(), {"conv.weight": 4, name: 4}) if hasattr(model, "conv") else plan_of(Small(), {name: 4})
    before = [(id(p), p._version) for p in model.parameters()]
    with pytest.raises(InputError, match=said):
        apply_plan(model, plan, backend=backend)
    assert [(id(p), p._version) for p in model.parameters()] == before


def masked() -> nn.Module:
    model = Small()
    nn.utils.prune.l1_unstructured(model.head, "weight", 0.5)
    return model


@pytest.mark.parametrize("made", [weight_normed, old_weight_normed, masked])
def test_weights_that_are_computed_from_others_are_refused(made: Callable[[], nn.Module]) -> None:
    model = made()
    name = next(n for n, p in model.named_parameters() if n.startswith("head") and p.ndim == 2 and p.shape[1] > 1)
    with pytest.raises(InputError, match="computed from this parameter"):
        apply_plan(model, plan_of(model, {name: 4}))


def test_a_plan_that_does_not_hang_together_is_refused() -> None:
    model = Small()
    plan = plan_of(model, {"head.weight": 4})
    with pytest.raises(InputError, match="'other.weight', which it does not plan"):
        apply_plan(model, replace(plan, choice={**plan.choice, "other.weight": Quantize(4)}))
    with pytest.raises(InputError, match="no multiple of the group of 5"):
        apply_plan(model, replace(plan, choice={"head.weight": Quantize(4, "group:5")}))
    with pytest.raises(InputError, match=r"function 'mine'; a loaded plan knows its name.*load_plan"):
        apply_plan(model, replace(plan, choice={"head.weight": Function("mine")}))
    with pytest.raises(InputError, match="unknown backend 'onnx'"):
        apply_plan(model, plan, backend="onnx")


def test_ties_must_be_those_of_the_plan() -> None:
    tied, free = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="1.weight is tied to 0.weight in the plan, and not here"):
        apply_plan(free, plan_of(tied, {"0.weight": 4}))
    with pytest.raises(InputError, match=r"0.weight and 1.weight are one tensor here"):
        apply_plan(tied, plan_of(free, {"0.weight": 4, "1.weight": 8}))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("backend", ["fake", "torchao"])
def test_a_failure_half_way_leaves_the_model_as_it_was(backend: str, error: type[BaseException]) -> None:
    pytest.importorskip("torchao")

    def failing(weight: Tensor) -> Tensor:
        raise error("half way")

    model = Small()
    plan = plan_of(model, {**CHOICE, "rnn.weight_hh_l0": Function("failing", failing)})
    before, parameters, shown = state(model), dict(model.named_parameters()), repr(model)
    with pytest.raises(InputError if error is RuntimeError else error, match="half way"):
        apply_plan(model, plan, backend=backend)
    assert same(state(model), before)
    assert dict(model.named_parameters()) == parameters
    assert repr(model) == shown
    assert all("extra_repr" not in module.__dict__ for module in model.modules())


def test_other_numbers_of_torchaos_are_refused_and_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    model = Small()
    before = state(model)
    monkeypatch.setattr(module_of_apply, "changed", lambda option, weight, where: changed(Quantize(7), weight))
    with pytest.raises(CheckError, match="stores other weights than the plan measured"):
        apply_plan(model, plan_of(model, CHOICE), backend="torchao")
    assert same(state(model), before)


def test_weights_made_in_inference_mode_are_changed_too() -> None:
    with torch.inference_mode():
        model = Small()
    expected = changed(Quantize(4), model.head.weight)
    apply_plan(model, plan_of(model, {"head.weight": 4}))
    assert torch.equal(model.head.weight, expected)


def test_torchao_missing_or_broken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    model = Small()
    plan, before = plan_of(model, CHOICE), state(model)

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", missing)
        with pytest.raises(InputError, match=r"torchao is not installed.*pip install 'layerhess\[torchao\]'"):
            apply_plan(model, plan, backend="torchao")
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda name: "0.1.2")
        patch.setitem(sys.modules, "torchao.core.config", None)
        with pytest.raises(InputError, match=r"torchao 0.1.2 does not load with this torch: ModuleNotFoundError"):
            apply_plan(model, plan, backend="torchao")
    assert same(state(model), before)


def test_a_trained_on_model_trains_on(monkeypatch: Any) -> None:
    """Fake-quantised weights are the same parameters, so an optimizer goes on with them."""
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apply_plan(model, plan_of(model, CHOICE))
    model(TOKENS).square().sum().backward()
    before = model.head.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)
