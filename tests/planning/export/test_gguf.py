"""Types and names are those of the package gguf; the file is read as llama-quantize reads it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerhess.errors import InputError, LayerhessWarning
from layerhess.planning.export import gguf as module
from layerhess.planning.export.export import export
from layerhess.results.options import Prune, Quantize
from plans import plan_of

gguf = pytest.importorskip("gguf")


def llama(hidden: int = 256, layers: int = 12) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config)


def read(file: Path) -> list[tuple[str, str]]:
    """Patterns, in lower case, and types, as the tool separates them."""
    pairs = [entry.partition("=")[::2] for entry in file.read_text().split()]
    return [(pattern.lower(), kind) for pattern, kind in pairs]


def test_every_matrix_of_a_llama_has_its_own_line(tmp_path: Path) -> None:
    model = llama()
    bits = [2, 3, 4, 5, 6, 8]
    names = [name for name, weight in model.named_parameters() if weight.ndim == 2]
    choice = {name: Quantize(bits[i % len(bits)]) for i, name in enumerate(names)}
    assert export(plan_of(model, choice), "gguf", tmp_path) == []
    lines = read(tmp_path / "tensor_types.txt")
    inner = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    theirs = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
    theirs |= {f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for i in range(12) for a, b in inner.items()}
    assert set(theirs) == set(names)
    for name, option in choice.items():
        hits = [kind for pattern, kind in lines if re.search(pattern, theirs[name])]
        assert hits == [{2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 8: "q8_0"}[option.bits]], name


def test_transposed_matrices_of_gpt2_are_named_and_measured_along_their_inputs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=128, n_head=2, vocab_size=50))
    choice = {
        "transformer.wte.weight": 8,
        "transformer.h.1.attn.c_attn.weight": 4,
        "transformer.h.1.mlp.c_proj.weight": 5,
    }
    assert export(plan_of(model, choice), "gguf", tmp_path) == []
    assert read(tmp_path / "tensor_types.txt") == [
        (r"^token_embd\.weight$", "q8_0"),
        (r"^blk\.1\.attn_qkv\.weight$", "q4_0"),
        (r"^blk\.1\.ffn_down\.weight$", "q5_k"),  # from 512 to 128,
    ]


def test_the_table_of_types_is_that_of_ggml() -> None:
    """Names, rows, and the bits that the page says."""
    said = dict(re.findall(r"(Q\d_[K0]) \(([\d.]+)", module.__doc__ or ""))
    for side, types in module.TYPES.items():
        for bits, name in types.items():
            kind = gguf.GGMLQuantizationType[name]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            assert side % block == 0
            assert 8 * size / block == pytest.approx(float(said.get(name, "nan")), abs=1e-4), name
            assert bits <= 8 * size / block < bits + 1


def test_what_llama_cpp_cannot_do_is_left_out_and_said(tmp_path: Path) -> None:
    model = llama(hidden=96, layers=1)
    layer = "model.layers.0."
    choice = {
        f"{layer}self_attn.q_proj.weight": Quantize(4),
        f"{layer}self_attn.k_proj.weight": Quantize(3),
        f"{layer}self_attn.v_proj.weight": Prune(0.5),
        f"{layer}mlp.up_proj.weight": Quantize(7),
        f"{layer}input_layernorm.weight": Quantize(8, "tensor"),
    }
    with pytest.warns(LayerhessWarning, match="not in the gguf file"):
        left_out = export(plan_of(model, choice), "gguf", tmp_path)
    lines = read(tmp_path / "tensor_types.txt")
    assert (r"^blk\.0\.attn_q\.weight$", "q4_0") in lines
    assert {kind for _, kind in lines} == {"q4_0"}
    assert not [pattern for pattern, _ in lines if "attn_k" in pattern or "ffn" in pattern or "norm" in pattern]
    assert len(left_out) == 4
    assert "no type of 3 bits for rows of 96 weights" in left_out[0]
    assert "no type that does this" in left_out[1]
    assert "no type of 7 bits" in left_out[2]
    assert "quantises matrices" in left_out[3]


def test_models_that_llama_cpp_does_not_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="knows none of these weights by name"):
        export(plan_of(nn.Sequential(nn.Linear(32, 4)), {"0.weight": 4}), "gguf", tmp_path / "file.txt")
    assert not list(tmp_path.iterdir())


class Table:
    """Names of one architecture out of two."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def get_name(self, stem: str) -> str | None:
        return self.names.get(stem)


def test_a_weight_has_a_line_for_each_name_it_may_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unless that name is another weight's in another architecture, and the two have different bits."""
    tables = {"a": {"one": "x", "two": "y", "three": "z"}, "b": {"one": "u", "two": "z", "three": "w"}}
    monkeypatch.setattr(gguf, "MODEL_ARCH", list(tables))
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda which, blocks: Table(tables[which]))
    model = nn.ModuleDict({name: nn.Linear(32, 4) for name in ("one", "two", "three", "four")})
    same = plan_of(model, dict.fromkeys(["one.weight", "two.weight", "three.weight"], Quantize(4)))
    assert export(same, "gguf", tmp_path) == []
    assert [pattern for pattern, _ in read(tmp_path / "tensor_types.txt")] == [
        rf"^{name}\.weight$" for name in ("x", "u", "y", "z", "w")
    ]
    other = plan_of(model, {"one.weight": 4, "two.weight": 4, "three.weight": 8, "four.weight": 4})
    with pytest.warns(LayerhessWarning, match="that of another weight in some architectures"):
        left_out = export(other, "gguf", tmp_path)
    assert [sentence.split(" ")[0] for sentence in left_out] == ["two.weight", "three.weight", "four.weight"]
    assert "not known" in left_out[2]
    assert [pattern for pattern, _ in read(tmp_path / "tensor_types.txt")] == [r"^x\.weight$", r"^u\.weight$"]


def test_tables_are_not_changed_by_looking_names_up() -> None:
    from gguf.tensor_mapping import TensorNameMap

    before = dict(TensorNameMap.block_mappings_cfg)
    module._names(["model.embed_tokens.weight"])
    assert TensorNameMap.block_mappings_cfg == before


def test_gguf_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="package gguf, which is not installed.*pip install gguf"):
        export(plan_of(nn.Sequential(nn.Linear(32, 4)), {"0.weight": 4}), "gguf", tmp_path)
