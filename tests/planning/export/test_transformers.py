"""transformers loads the file, and from_pretrained makes the planned weights of a model that was saved."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layerhess.errors import LayerhessWarning
from layerhess.planning.export.export import export
from layerhess.planning.weights.applied import changed
from layerhess.planning.weights.apply import apply_plan
from layerhess.results.options import Option, Quantize
from plans import plan_of

pytest.importorskip("torchao")
transformers = pytest.importorskip("transformers")


def llama(tied: bool) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_from_pretrained_makes_the_planned_weights(tmp_path: Path, tied: bool) -> None:
    model = llama(tied)
    choice: dict[str, Option] = {
        "model.embed_tokens.weight": Quantize(4),
        "model.layers.0.self_attn.q_proj.weight": Quantize(2, "group:8", symmetric=False),
        "model.layers.1.mlp.down_proj.weight": Quantize(3),
    }
    if not tied:
        choice["lm_head.weight"] = Quantize(8)
    plan = plan_of(model, choice)
    assert export(plan, "transformers", tmp_path) == []
    config = transformers.TorchAoConfig.from_dict(json.loads((tmp_path / "quantization_config.json").read_text()))
    model.save_pretrained(tmp_path / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=config, dtype=torch.float32
    )
    names = dict(model.named_parameters())
    for name, weight in loaded.named_parameters():
        if name in choice:
            assert type(weight).__name__ == "IntxUnpackedToInt8Tensor", name
            assert torch.equal(weight.dequantize(), changed(choice[name], names[name])), name
        else:
            assert torch.equal(weight, names[name]), name
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    fake = copy.deepcopy(model)
    apply_plan(fake, plan)
    tokens = torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, fake(tokens).logits, rtol=1e-5, atol=1e-6)


def test_layers_of_transformers_own_are_left_out(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=30, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    plan = plan_of(model, {"transformer.wte.weight": 4, "transformer.h.0.mlp.c_fc.weight": 4})
    with pytest.warns(LayerhessWarning, match="do not work in Conv1D"):
        assert len(export(plan, "transformers", tmp_path)) == 1
