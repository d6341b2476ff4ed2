"""The oracle itself, against the models' own forward passes, hooks, and recorded runs of the original ACDC."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import oracle
import pytest
import torch
from checkpoints import FAMILIES, NATIVE_KINDS, make_checkpoint, make_model, make_native
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

CLEAN = torch.tensor([[2, 5, 3, 7, 4], [9, 2, 2, 6, 1], [0, 8, 3, 3, 5], [4, 6, 7, 0, 9]])
CORRUPTED = torch.tensor([[3, 5, 2, 7, 4], [9, 4, 8, 6, 1], [1, 8, 7, 2, 5], [6, 6, 5, 0, 3]])
RUNS = [
    f"sort_{digits}_{metric}_{threshold}"
    for digits in ("k0", "k2")
    for metric in ("kl_div", "logit_diff")
    for threshold in (0.3, 0.03)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are so small that threads would only wait for each other, for minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(kind: str, folder: Path) -> torch.nn.Module:
    """A model of any family in double precision, by way of a checkpoint where it has one."""
    if kind in NATIVE_KINDS:
        return make_native(kind)
    model = AutoModelForCausalLM.from_pretrained(make_checkpoint(kind, folder, n_heads=4), dtype=torch.float64).eval()
    assert model.config.num_attention_heads == 4
    return model


@torch.no_grad()
def forward(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens)
    return getattr(logits, "logits", logits)


def all_edges(model: object, projection_edges: bool = False) -> set[tuple[str, str]]:
    return {(s, r) for r, senders in oracle.order(model, projection_edges) for s in senders}


@pytest.mark.parametrize("kind", FAMILIES + NATIVE_KINDS)
def test_whole_and_empty_circuit_are_the_models_own_runs(kind: str, tmp_path: Path) -> None:
    model = load(kind, tmp_path)
    parts = oracle.read(model)
    # The models' own RMS norm is float32, and so is the bridge.
    tolerance = 1e-4 if kind in (*NATIVE_KINDS, "llama", "llama_tied") else 1e-9
    clean, corrupted = forward(model, CLEAN).double(), forward(model, CORRUPTED).double()
    carried = oracle.ablated(parts, CORRUPTED)
    for logits, own in (
        (oracle.evaluate(parts, CLEAN)[0], clean),
        (oracle.evaluate(parts, CLEAN, all_edges(parts), carried)[0], clean),
        (oracle.evaluate(parts, CLEAN, all_edges(parts, True), carried, projection_edges=True)[0], clean),
        (oracle.evaluate(parts, CLEAN, set(), carried)[0], corrupted),
    ):
        assert logits.dtype == torch.float64
        torch.testing.assert_close(logits, own, rtol=0, atol=tolerance)
    assert (clean - corrupted).abs().max() > 0.5


@pytest.mark.parametrize("kind", ["llama", "llama_tied"])
def test_rms_norm_in_double_precision(kind: str, tmp_path: Path) -> None:
    model = load(kind, tmp_path)
    logits, _ = oracle.evaluate(model, CLEAN)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = torch.nn.RMSNorm(len(child.weight), child.variance_epsilon).double()
                norm.weight.data = child.weight.data
                setattr(module, name, norm)
    torch.testing.assert_close(logits, forward(model, CLEAN), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", FAMILIES)
def test_single_precision(kind: str) -> None:
    model = make_model(kind, seed=1)
    logits, _ = oracle.evaluate(oracle.read(model, torch.float32), CLEAN)
    torch.testing.assert_close(logits, forward(model, CLEAN), rtol=0, atol=1e-4)


@pytest.mark.parametrize("receiver", ["m1", "a1.h1<q>", "a1.h1<k>", "a1.h1<v>", "logits"])
def test_one_removed_edge_is_a_patched_input(receiver: str) -> None:
    """Without m0 → receiver, that receiver alone sees m0's corrupted output: here by hooks on GPT-2's modules."""
    model = make_model("gpt2").double()
    last, final = model.transformer.h[1], model.transformer.ln_f
    seen: list[torch.Tensor] = []
    hook = model.transformer.h[0].mlp.register_forward_hook(lambda _, __, output: seen.append(output))
    forward(model, CLEAN), forward(model, CORRUPTED)
    hook.remove()
    change = seen[1] - seen[0]

    def patched_head(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        start = 8 * "qkv".index(receiver[-2]) + 4  # head 1 of width 4, of 2 heads
        other = module.forward(last.ln_1(residual[0] + change))
        return torch.cat([output[..., :start], other[..., start : start + 4], output[..., start + 4 :]], -1)

    residual: list[torch.Tensor] = []
    if receiver in ("m1", "logits"):
        norm = last.ln_2 if receiver == "m1" else final
        norm.register_forward_pre_hook(lambda _, inputs: (inputs[0] + change,))
    else:
        last.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0]))
        last.attn.c_attn.register_forward_hook(patched_head)
    expected = forward(model, CLEAN)

    plain = make_model("gpt2")
    present = all_edges(plain) - {("m0", receiver)}
    logits, _ = oracle.evaluate(plain, CLEAN, present, oracle.ablated(plain, CORRUPTED))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert (logits - forward(plain.double(), CLEAN)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "bidirectional"])
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_removing_a_projection_edge_removes_all_edges_of_its_port(kind: str, ablation: str, tmp_path: Path) -> None:
    parts = oracle.read(load(kind, tmp_path))
    carried, edges = oracle.ablated(parts, CORRUPTED, ablation), all_edges(parts, True)
    for port in ("a1.h0<q>", "a0.h1<k>", "a1.h1<v>"):
        without = edges - {(port, port.replace("<", "[").replace(">", "]"))}
        bare = {edge for edge in edges if edge[1] != port}
        got = oracle.evaluate(parts, CLEAN, without, carried, projection_edges=True)[0]
        torch.testing.assert_close(got, oracle.evaluate(parts, CLEAN, bare, carried, True)[0], rtol=0, atol=1e-12)


def test_zero_ablation_leaves_the_biases() -> None:
    model = make_model("gpt2")
    zero = oracle.ablated(model, CORRUPTED, "zero")
    assert all(not x.any() for x in zero.values())
    logits, _ = oracle.evaluate(model, CLEAN, set(), zero)
    model = model.double()
    with torch.no_grad():
        bias = sum(block.attn.c_proj.bias for block in model.transformer.h)
        expected = model.lm_head(model.transformer.ln_f(bias))
    torch.testing.assert_close(logits, expected.expand_as(logits), rtol=0, atol=1e-12)


def test_number_of_edges() -> None:
    assert len(all_edges(make_model("gpt2", n_layers=12, n_heads=12, d_head=2))) == 32_491
    assert len(all_edges(make_model("gpt2", n_layers=12, n_heads=12, d_head=2), True)) == 32_923
    assert len(all_edges(make_model("llama", n_layers=5, n_heads=8, d_head=2))) == 2_461


def test_order_of_the_test() -> None:
    order = oracle.order(make_model("gpt2"), projection_edges=True)
    assert [receiver for receiver, _ in order[:16]] == [
        *("logits", "m1", "a1.h1[v]", "a1.h0[v]", "a1.h1[k]", "a1.h0[k]", "a1.h1[q]", "a1.h0[q]"),
        *("a1.h1<v>", "a1.h0<v>", "a1.h1<k>", "a1.h0<k>", "a1.h1<q>", "a1.h0<q>", "m0", "a0.h1[v]"),
    ]
    senders = dict(order)
    assert senders["logits"] == ["m1", "a1.h1", "a1.h0", "m0", "a0.h1", "a0.h0", "input"]
    assert senders["m1"] == senders["logits"][1:]
    assert senders["a1.h0<k>"] == senders["logits"][3:]
    assert senders["a0.h1[v]"] == ["a0.h1<v>"]
    assert dict(oracle.order(make_model("gpt_neox")))["m1"] == senders["logits"][3:]


@pytest.mark.parametrize("name", RUNS)
def test_recorded_runs_of_the_original(name: str, shared: Path) -> None:
    run = json.loads((shared / "data/golden/acdc_original_gpt_nano_sort.json").read_text())[name]
    model = oracle.read(GPT2LMHeadModel.from_pretrained(shared / "data/models/gpt-nano-sort"))
    assert len(all_edges(model, True)) == run["total_edges"]
    clean, corrupted = torch.tensor(run["clean"]), torch.tensor(run["corrupted"])
    where = {"answers": run["answers"], "wrong": run["wrong"], "positions": run["position"]}
    tested, kept = oracle.acdc(
        model, clean, corrupted, run["metric"], run["threshold"], run["ablation"], projection_edges=True, **where
    )

    def recorded_place(edge: tuple[str, str]) -> tuple:
        """The record lists the q, k and v ports of a layer in this order; they were tested v, k, q (see effects)."""
        receiver = edge[1]
        if receiver == "logits":
            return (-99,)
        layer = int(receiver[1:].split(".")[0])
        return (-layer,) if receiver[0] == "m" else (-layer, "<" in receiver, "qkv".index(receiver[-2]))

    recorded = {(sender, receiver): effect for sender, receiver, _, effect in run["kept"]}
    assert sorted(kept, key=recorded_place) == list(recorded)
    # An effect depends on everything removed before it, so equal effects mean the same order of the test.
    assert kept == pytest.approx(recorded, abs=1e-5)
    removed = sum(effect for _, _, effect, is_kept in tested if not is_kept)
    assert run["start_metric"] + removed == pytest.approx(run["final_metric"], abs=1e-4)
