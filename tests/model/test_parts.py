"""A model's parts against the model: every family, both shared models and the bundled one, in each precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FAMILIES, NATIVE_KINDS, make_checkpoint, make_model, make_native
from experiments import KINDS, oracle_logits, random_pairs, rows_of, small
from torch import Tensor
from transformers import AutoModelForCausalLM

from acdc.errors import ConfigError, ModelError
from acdc.graph import Graph, GraphConfig, GraphSettings
from acdc.model import LanguageModel, ModelSettings, load_model
from acdc.model.check import check_parts
from acdc.model.forward import run
from acdc.model.load import POCKET, read_parts
from acdc.model.parts import Norm

TOKENS = torch.tensor([[2, 5, 3, 7, 4, 1, 9], [9, 2, 2, 6, 1, 0, 3], [0, 8, 3, 3, 5, 5, 5]])


def logits_of(model: LanguageModel, tokens: Tensor) -> Tensor:
    lengths = torch.full((len(tokens),), tokens.shape[1])
    return model.unembed(run(model, tokens, lengths)[1])


def load(path: Path, split_embedding: bool = False, **settings: Any) -> tuple[LanguageModel, Any]:
    own = ModelSettings(name="local", path=str(path), device="cpu", **settings)
    return load_model(own, GraphSettings(split_embedding=split_embedding))


@torch.no_grad()
def own_logits(path: Path, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()(tokens).logits


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_hugging_faces(family: str, seed: int, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path, seed, n_layers=3, n_heads=4)
    model, bridge = load(path)
    torch.testing.assert_close(logits_of(model, TOKENS), own_logits(path, TOKENS), rtol=0, atol=1e-4)
    assert check_parts(model, bridge, TOKENS) < 1e-5


@pytest.mark.parametrize("kind", NATIVE_KINDS)
def test_logits_are_the_native_models(kind: str) -> None:
    bridge = make_native(kind, n_layers=3)
    model = read_parts(bridge, kind)
    logits = bridge(TOKENS).detach()
    # Without norms the stream grows to thousands, and the products of PyTorch round differently.
    torch.testing.assert_close(
        logits_of(model, TOKENS), logits, rtol=0, atol=5e-5 * max(1.0, float(logits.abs().max()))
    )
    assert check_parts(model, bridge, TOKENS) < (5e-5 if kind == "bidirectional" else 1e-5)


@pytest.mark.parametrize("name", ["gpt-nano-sort", "stories260K"])
def test_shared_models(name: str, shared: Path) -> None:
    path = shared / "data/models" / name
    model, bridge = load(path)
    tokens = TOKENS % 3 if name == "gpt-nano-sort" else TOKENS * 50
    torch.testing.assert_close(logits_of(model, tokens), own_logits(path, tokens), rtol=0, atol=1e-4)
    assert check_parts(model, bridge, tokens) < 1e-5


def test_bundled_model() -> None:
    model, bridge = load_model(ModelSettings(device="cpu"))
    torch.testing.assert_close(logits_of(model, TOKENS), own_logits(POCKET, TOKENS), rtol=0, atol=1e-4)
    assert check_parts(model, bridge, TOKENS) < 1e-5
    assert model.tokenizer is not None


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gpt_neox_sequential"])
def test_double_precision_is_hugging_faces(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path)
    model, bridge = load(path, dtype="float64")
    expected = own_logits(path, TOKENS, torch.float64)
    torch.testing.assert_close(logits_of(model, TOKENS), expected, rtol=0, atol=1e-9)
    assert check_parts(model, bridge, TOKENS) < 1e-9


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_double_precision_of_llama(family: str, tmp_path: Path) -> None:
    """Hugging Face's own RMS norm is float32 whatever the model's precision; ours is not."""
    path = make_checkpoint(family, tmp_path)
    model, bridge = load(path, dtype="float64")
    pairs = random_pairs(0)
    rows = rows_of(pairs)
    everything = Graph(model.config)
    truth = small(family).truth
    expected = oracle_logits(truth, rows, everything)
    torch.testing.assert_close(logits_of(model, rows.clean)[:, -1], expected, rtol=0, atol=1e-9)
    check_parts(model, bridge, TOKENS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precisions_pass_the_check(family: str, dtype: str, tmp_path: Path) -> None:
    model, bridge = load(make_checkpoint(family, tmp_path), dtype=dtype)
    assert str(model.dtype) == f"torch.{dtype}"
    check_parts(model, bridge, TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    """A short prompt beside longer ones, filled up behind, gives what it gives alone."""
    model = small(kind).parts
    padded = TOKENS.clone()
    padded[0, 4:] = 8
    lengths = torch.tensor([4, 7, 7])
    together = model.unembed(run(model, padded, lengths)[1])
    torch.testing.assert_close(together[:1, :4], logits_of(model, TOKENS[:1, :4]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[1:], logits_of(model, TOKENS[1:]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_shape_of_the_graph(kind: str) -> None:
    model = small(kind, n_heads=4).parts
    llama = kind.startswith("llama")
    assert model.config == GraphConfig(
        n_layers=2,
        n_heads=4,
        d_model=16,
        n_key_value_heads=2 if llama else None,
        parallel_attn_mlp=kind == "gpt_neox",
        attn_only=kind == "attention_only",
    )
    assert (model.causal, model.d_head, model.vocabulary_size) == (kind != "bidirectional", 4, 10)
    assert model.max_length == 16


@pytest.mark.parametrize("kind", ["gpt2", "layer_norm"])
def test_split_embedding(kind: str, tmp_path: Path) -> None:
    if kind == "gpt2":
        split, _ = load(make_checkpoint("gpt2", tmp_path), split_embedding=True)
    else:
        split = read_parts(make_native(kind), kind, split_embedding=True)
    whole = small(kind).parts
    inputs = split.embed(TOKENS)
    torch.testing.assert_close(inputs[0], split.W_E[TOKENS])
    assert split.W_pos is not None
    for i in range(len(TOKENS)):
        torch.testing.assert_close(inputs[1, i], split.W_pos[: TOKENS.shape[1]])
    torch.testing.assert_close(inputs.sum(0, keepdim=True), whole.embed(TOKENS))
    torch.testing.assert_close(logits_of(split, TOKENS), logits_of(whole, TOKENS))
    assert Graph(split.config).inputs == ("input.tok", "input.pos")


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_split_embedding_needs_learned_positions(family: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^graph\.split_embedding=true needs learned positions") as caught:
        load(make_checkpoint(family, tmp_path), split_embedding=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_one_head_and_some_columns_alone(kind: str) -> None:
    """`project_head`, with positions of its own, and `unembed` of a few columns give what the whole gives."""
    model = small(kind, n_heads=4).parts
    x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[6, 1], [2, 2], [0, 5]])
    layer = model.layers[1]
    for letter in "qkv":
        whole = layer.project(letter, x[None])
        some = layer.project(letter, x[None], slice(1, 3))
        torch.testing.assert_close(some, whole[1:3])
        for head in range(4):
            torch.testing.assert_close(layer.project_head(letter, head, x), whole[head], rtol=0, atol=1e-5)
            at = torch.stack([layer.project_head(letter, head, x[i, positions[i]], positions[i]) for i in range(3)])
            expected = torch.stack([whole[head, i, positions[i]] for i in range(3)])
            torch.testing.assert_close(at, expected, rtol=0, atol=1e-5)
    columns = torch.tensor([7, 0, 3])
    torch.testing.assert_close(model.unembed(x, columns), model.unembed(x)[..., columns])


@pytest.mark.parametrize("family", FAMILIES)
def test_another_precision_is_the_same_model(family: str) -> None:
    model = small(family).parts
    double = model.to("cpu", torch.float64)
    assert double.dtype == torch.float64
    assert logits_of(double, TOKENS).dtype == torch.float64
    torch.testing.assert_close(logits_of(double, TOKENS).float(), logits_of(model, TOKENS), rtol=0, atol=1e-4)
    assert model.dtype == torch.float32


def _scaled(part: Any, name: str, at: Any = slice(None)) -> Any:
    """The part with a weight, or a piece of it, 5% larger."""
    weight = getattr(part, name).clone()
    weight[at] *= 1.05
    return dataclasses.replace(part, **{name: weight})


def _in_layer(i: int, change: Callable[[Any], Any]) -> Callable[[LanguageModel], LanguageModel]:
    def changed(model: LanguageModel) -> LanguageModel:
        layers = list(model.layers)
        layers[i] = change(layers[i])
        return dataclasses.replace(model, layers=tuple(layers))

    return changed


def having(kind: str, weight: str) -> bool:
    """Llama has gates and no biases; the others the opposite."""
    llama = kind.startswith("llama")
    return not llama if weight.startswith("b_") else llama or weight != "W_gate"


ATTENTION = {"W_Q": 1, "W_K": -1, "W_V": -1, "W_O": 0, "b_O": slice(None), "b_V": -1}
MLP = ("W_in", "W_out", "W_gate", "b_in", "b_out")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in ATTENTION if having(kind, name)])
def test_a_wrong_attention_weight_is_found(kind: str, name: str) -> None:
    it, at = small(kind), ATTENTION[name]
    with pytest.raises(ModelError, match="attention of layer 1 differs"):
        check_parts(_in_layer(1, lambda layer: _scaled(layer, name, at))(it.parts), it.bridge, TOKENS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in MLP if having(kind, name) and kind != "attention_only"],
)
def test_a_wrong_mlp_weight_is_found(kind: str, name: str) -> None:
    it = small(kind)
    wrong = _in_layer(0, lambda layer: dataclasses.replace(layer, mlp=_scaled(layer.mlp, name)))(it.parts)
    with pytest.raises(ModelError, match="the MLP of layer 0 differs") as caught:
        check_parts(wrong, it.bridge, TOKENS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: _scaled(m, "W_E"), "the embedding"),
        (lambda m: _scaled(m, "W_U", (slice(None), 3)), "the unembedding"),
        (lambda m: dataclasses.replace(m, final_norm=_scaled(m.final_norm, "weight", 2)), "the unembedding"),
        (_in_layer(1, lambda la: dataclasses.replace(la, norm=_scaled(la.norm, "weight", 2))), "attention of layer 1"),
        (_in_layer(0, lambda la: dataclasses.replace(la, scale=1.1 * la.scale)), "attention of layer 0"),
        (
            _in_layer(1, lambda la: dataclasses.replace(la, mlp=dataclasses.replace(la.mlp, activation=torch.relu))),
            "the MLP of layer 1",
        ),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_other_wrong_part_is_found(
    family: str, change: Callable[[LanguageModel], LanguageModel], part: str
) -> None:
    it = small(family)
    with pytest.raises(ModelError, match=f"{part} differs"):
        check_parts(change(it.parts), it.bridge, TOKENS)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_wrong_rotary_positions_are_found(family: str) -> None:
    it = small(family, d_head=8)  # of which gpt_neox turns four dimensions; two would have only one pairing

    def other_pairing(layer: Any) -> Any:
        return dataclasses.replace(layer, rotary=dataclasses.replace(layer.rotary, adjacent=True))

    with pytest.raises(ModelError, match="attention of layer 0 differs"):
        check_parts(_in_layer(0, other_pairing)(it.parts), it.bridge, TOKENS)


def test_a_wrong_key_bias_is_found_where_keys_are_rotated() -> None:
    """Elsewhere it adds the same to all scores of a query, and attention does not show it."""
    it = small("gpt_neox")
    with pytest.raises(ModelError, match="attention of layer 1 differs"):
        check_parts(_in_layer(1, lambda layer: _scaled(layer, "b_K"))(it.parts), it.bridge, TOKENS)


def test_a_model_taken_for_parallel_is_found() -> None:
    it = small("gpt_neox_sequential")
    config = dataclasses.replace(it.parts.config, parallel_attn_mlp=True)
    with pytest.raises(ModelError, match="the MLP of layer 0 differs"):
        check_parts(dataclasses.replace(it.parts, config=config), it.bridge, TOKENS)


def test_another_model_of_the_same_shape_is_found(tmp_path: Path) -> None:
    _, bridge = load(make_checkpoint("gpt2", tmp_path, seed=8))
    with pytest.raises(ModelError, match="the embedding differs"):
        check_parts(small("gpt2").parts, bridge, TOKENS)


def test_layers_scaled_by_their_index(tmp_path: Path) -> None:
    """GPT-2's scale_attn_by_inverse_layer_idx, and other options that change attention without a new weight."""
    path = make_checkpoint("gpt2", tmp_path, scale_attn_by_inverse_layer_idx=True, scale_attn_weights=True)
    model, bridge = load(path)
    assert model.layers[1].scale == pytest.approx(model.layers[0].scale / 2)
    torch.testing.assert_close(logits_of(model, TOKENS), own_logits(path, TOKENS), rtol=0, atol=1e-4)
    check_parts(model, bridge, TOKENS)
    plain = make_model("gpt2")(TOKENS).logits.detach()
    assert float((logits_of(model, TOKENS) - plain).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["layer", "rms", "none"])
def test_a_direction_before_a_norm_whose_scale_is_held(kind: str) -> None:
    torch.manual_seed(0)
    weight, bias = (torch.randn(6), torch.randn(6)) if kind == "layer" else (torch.randn(6), None)
    norm = Norm(kind, 1e-2, *((weight, bias) if kind != "none" else ()))
    x, direction = torch.randn(3, 6), torch.randn(3, 6)
    rest = direction @ bias if bias is not None else 0.0
    torch.testing.assert_close((norm.held(direction, x) * x).sum(-1) + rest, (norm(x) * direction).sum(-1))
    # Twice as large an x has half the scale, but for eps.
    torch.testing.assert_close(
        Norm(kind, 0.0, norm.weight).held(direction, 2 * x) * (1.0 if kind == "none" else 2.0),
        Norm(kind, 0.0, norm.weight).held(direction, x),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1.0, 300.0, 30000.0])
def test_norms_are_hugging_faces_in_any_precision(size: float, dtype: torch.dtype) -> None:
    """In float16 the square of 256 overflows."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 16, generator=generator)
    x[:, 3] *= size
    x = x.clamp(-60000, 60000).to(dtype)
    weight, bias = (torch.randn(16, generator=generator).to(dtype) for _ in range(2))
    rms, layer = LlamaRMSNorm(16, 1e-6).to(dtype), torch.nn.LayerNorm(16, 1e-6).to(dtype)
    rms.weight.data, layer.weight.data, layer.bias.data = weight, weight, bias
    assert torch.equal(Norm("rms", 1e-6, weight)(x), rms(x).detach())
    assert torch.equal(Norm("layer", 1e-6, weight, bias)(x), layer(x).detach())
    for norm in (Norm("rms", 1e-6, weight), Norm("layer", 1e-6, weight)):
        exact = Norm(norm.kind, 1e-6, weight.double())
        torch.testing.assert_close(norm.scale(x).double(), exact.scale(x.double()), rtol=1e-5, atol=0)
        held, right = norm.held(bias, x), exact.held(bias.double(), x.double())
        assert held.dtype == dtype
        if dtype != torch.float16 or size < 1000:  # what float16 can hold
            close = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
            torch.testing.assert_close(held.double(), right, rtol=0, atol=close * float(right.abs().max()))
