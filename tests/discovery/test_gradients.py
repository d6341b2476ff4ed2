"""The methods that take a gradient against TransformerLens hooks and autograd, and against the full engine's mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, make_native
from experiments import KINDS, experiment, random_pairs, rows_of, small
from torch import Tensor

from acdc import Experiment
from acdc.discovery import discover, score
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import ConfigError
from acdc.graph import Edge, parse_node
from acdc.model import LanguageModel, ModelSettings, load_model
from acdc.model.load import read_parts
from acdc.tasks.base import Pair

FAMILIES = ("gpt2", "llama", "gpt_neox", "gpt_neox_sequential")
Scores = dict[tuple[str, str], float]


def scores_of(one: Experiment, method: str, **options: Any) -> dict[Edge, float]:
    return score(one, method=method, **options)


# The oracle: one prompt at a time, a tensor of zeros added at every port's hook, autograd down to these.


def hooked(kind: str, folder: Path, n_heads: int = 4) -> tuple[LanguageModel, Any]:
    path = make_checkpoint(kind, folder, seed=2, n_layers=2, n_heads=n_heads)
    model, bridge = load_model(ModelSettings("local", str(path), device="cpu"))
    for switch in ("set_use_split_qkv_input", "set_use_attn_result", "set_use_hook_mlp_in"):
        getattr(bridge, switch)(True)
    return model, bridge


class Hooks:
    """Scores by hooks of a two-layer model; heads that share keys and values are one port, `a0.g1<k>`."""

    PORTS = (*(f"blocks.{i}.hook_{x}_input" for i in (0, 1) for x in "qkv"), "blocks.0.hook_mlp_in")
    PORTS = (*PORTS, "blocks.1.hook_mlp_in", "ln_final.hook_in")
    GROUPS = ("blocks.0.hook_in", *(f"blocks.{i}.{x}" for i in (0, 1) for x in ("attn.hook_result", "hook_mlp_out")))

    def __init__(self, bridge: Any, pairs: list[Pair], metric: str) -> None:
        self.bridge, self.rows, self.metric = bridge, rows_of(pairs), metric

    def caches(self, row: int) -> tuple[Any, Any]:
        length = self.rows.lengths[row]
        prompts = (self.rows.clean, self.rows.corrupted)
        clean, corrupted = (self.bridge.run_with_cache(tokens[[row], :length])[1] for tokens in prompts)
        return clean, corrupted

    def gradients(self, row: int, replaced: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the loss by what each port reads; with some outputs replaced."""
        tokens = self.rows.clean[[row], : self.rows.lengths[row]]
        probes: dict[str, Tensor] = {}

        def probe(value: Tensor, hook: Any, name: str) -> Tensor:
            probes[name] = torch.zeros_like(value, requires_grad=True)
            return value + probes[name]

        def put(value: Tensor, hook: Any, name: str) -> Tensor:
            assert value.shape == replaced[name].shape
            fired.append(name)
            return replaced[name]

        fired: list[str] = []
        with torch.no_grad():
            full = self.bridge(tokens)[0, self.rows.positions[row]]
        hooks = [
            (name, partial(do, name=name)) for do, names in ((put, replaced), (probe, self.PORTS)) for name in names
        ]
        logits = self.bridge.run_with_hooks(tokens, fwd_hooks=hooks)[0, self.rows.positions[row]]
        loss = self.rows.weights[row] * self.loss(logits, full, self.rows.answers[row], self.rows.wrong[row])
        assert (set(fired), set(probes)) == (set(replaced), set(self.PORTS))
        gradients = torch.autograd.grad(loss, [probes[name] for name in self.PORTS], allow_unused=True)
        return dict(zip(self.PORTS, gradients, strict=True))

    def loss(self, logits: Tensor, full: Tensor, right: list[int], wrong: list[int]) -> Tensor:
        p = logits.softmax(-1)
        if self.metric == "logit_diff":
            return logits[wrong].mean() - logits[right].mean()
        if self.metric == "prob_diff":
            return p[wrong].sum() - p[right].sum()
        if self.metric == "nll":
            return -p[right].sum().log()
        if self.metric == "l2":
            return (logits - full).square().mean()
        return (full.softmax(-1) * (full.log_softmax(-1) - p.log())).sum()

    def scores(self, runs: Callable[[Any, Any], list[dict[str, Tensor]]]) -> Scores:
        """The mean over runs, each given by what it replaces, of change times gradient."""
        total: Scores = {}
        for row in range(len(self.rows.lengths)):
            clean, corrupted = self.caches(row)
            change = {"input": corrupted[self.GROUPS[0]] - clean[self.GROUPS[0]]}
            for i in (0, 1):
                result, mlp = f"blocks.{i}.attn.hook_result", f"blocks.{i}.hook_mlp_out"
                for head in range(clean[result].shape[2]):
                    change[f"a{i}.h{head}"] = (corrupted[result] - clean[result])[:, :, head]
                change[f"m{i}"] = corrupted[mlp] - clean[mlp]
            chosen = runs(clean, corrupted)
            for replaced in chosen:
                for name, gradient in self.gradients(row, replaced).items():
                    for port, at in self.by_port(name, gradient).items():
                        for sender, moved in change.items():
                            key = sender, port
                            total[key] = total.get(key, 0.0) + (moved * at).sum().item() / len(chosen)
        return total

    @staticmethod
    def by_port(name: str, gradient: Tensor | None) -> dict[str, Tensor]:
        if gradient is None:  # nothing behind the port is left
            return {}
        if name == "ln_final.hook_in":
            return {"logits": gradient}
        _, layer, hook = name.split(".")
        if hook == "hook_mlp_in":
            return {f"m{layer}": gradient}
        return {f"a{layer}.g{g}<{hook[5]}>": gradient[:, :, g] for g in range(gradient.shape[2])}


def by_group(scores: dict[Edge, float], group: int) -> Scores:
    """Ours, with the heads of a group together."""
    total: Scores = {}
    for (sender, receiver), value in scores.items():
        node, port = parse_node(receiver), receiver
        if node.letter:
            port = f"a{node.layer}.g{node.unit // (1 if node.letter == 'q' else group)}<{node.letter}>"
        total[sender, port] = total.get((sender, port), 0.0) + value
    return total


def runs_of(method: str, steps: int) -> Callable[[Any, Any], list[dict[str, Tensor]]]:
    names = Hooks.GROUPS

    def runs(clean: Any, corrupted: Any) -> list[dict[str, Tensor]]:
        def between(name: str, alpha: float) -> dict[str, Tensor]:
            return {name: corrupted[name] + alpha * (clean[name] - corrupted[name])}

        if method == "eap":
            return [{}]
        if method == "clean_corrupted":
            return [{}, {names[0]: corrupted[names[0]]}]
        if method == "inputs":
            return [between(names[0], k / steps) for k in range(steps)]
        return [between(name, k / steps) for name in names for k in range(1, steps + 1)]

    return runs


@pytest.mark.parametrize("method", ["eap", "clean_corrupted", "inputs", "activations"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_scores_are_those_of_hooks_and_autograd(kind: str, method: str, tmp_path: Path) -> None:
    model, bridge = hooked(kind, tmp_path)
    metric = {"gpt2": "logit_diff", "llama": "prob_diff", "gpt_neox": "nll", "gpt_neox_sequential": "kl_div"}[kind]
    if method == "eap" and metric == "kl_div":
        metric = "logit_diff"
    pairs = random_pairs(5, (5, 4), positions=2, partners=2) if method != "activations" else random_pairs(6, (5, 4))
    one = experiment(model, pairs, metric)
    options: dict[str, Any] = {"method": method}
    if method in ("inputs", "activations"):
        options = {"method": "eap_ig", "interpolate": method, "steps": 3}
    ours = by_group(scores_of(one, **options), 2 if kind == "llama" else 1)
    theirs = Hooks(bridge, pairs, metric).scores(runs_of(method, 3))
    assert max(map(abs, ours.values())) > 0.01
    for key, value in ours.items():
        assert value == pytest.approx(theirs.get(key, 0.0), rel=2e-4, abs=2e-5), key


def mask_gradient(one: Experiment) -> dict[Edge, float]:
    """−(the loss's derivative by each edge of the full engine's mask), at the whole model."""
    graph, metric = one.graph, one.metric
    mask = EdgeMask.all(graph).ports.to(one.model.dtype)[None].requires_grad_()
    loss = metric.loss(one.model.unembed(FullEngine(one).stream(mask), metric.columns)).sum()
    (by_mask,) = torch.autograd.grad(loss, mask)
    return {e: -by_mask[0, graph.port_index[e.receiver], graph.sender_index[e.sender]].item() for e in graph}


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean", "noise"])
@pytest.mark.parametrize("kind", KINDS)
def test_eap_is_the_derivative_by_the_mask(kind: str, ablation: str) -> None:
    """A head's own k and v with grouped queries, and what hooks do not reach: native models, other ablations."""
    lengths = (5, 5, 5) if ablation in ("mean", "noise") else (4, 6, 3)
    one = experiment(small(kind, 4), random_pairs(1, lengths, partners=2), "nll", ablation)
    found, expected = scores_of(one, "eap"), mask_gradient(one)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert max(abs(score) for score in found.values()) > 0.01


def linear_model() -> LanguageModel:
    """No norm, no MLPs, and attention that looks everywhere alike, since queries and keys are 0."""
    bridge = make_native("attention_only", seed=3, n_layers=3)
    with torch.no_grad():
        for name, parameter in bridge.original_model.named_parameters():
            if ".q." in name or ".k." in name:
                parameter.zero_()
    return read_parts(bridge, "linear")


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_in_a_linear_model_they_are_the_exact_effects(ablation: str) -> None:
    one = experiment(linear_model(), random_pairs(2, (5, 6, 4)), "logit_diff", ablation)
    exact = scores_of(one, "exact")
    assert sum(abs(score) > 0.01 for score in exact.values()) > 20
    assert all(score == 0 for edge, score in exact.items() if edge.receiver.endswith(("<q>", "<k>")))
    methods = ("eap", "eap_ig", "clean_corrupted") if ablation == "corrupted" else ("eap",)
    for method in methods:
        assert scores_of(one, method) == pytest.approx(exact, rel=1e-4, abs=1e-5), method


def test_blocks_of_rows_change_nothing() -> None:
    one = experiment(small("llama", 4), random_pairs(1, (5, 3, 4, 6), partners=2), "logit_diff")
    for method in ("eap", "eap_ig", "exact", "hisp", "information_flow"):
        in_blocks = scores_of(one, method, memory_gb=1e-9)
        assert in_blocks == pytest.approx(scores_of(one, method), rel=1e-4, abs=1e-6), method


@pytest.mark.parametrize(
    ("method", "options", "metric", "ablation", "said"),
    [
        ("eap", {}, "kl_div", "corrupted", "metric=kl_div has no slope at the full model"),
        ("hisp", {}, "l2", "corrupted", "metric=l2 has no slope"),
        ("eap_ig", {"interpolate": "activations", "steps": 1}, "kl_div", "corrupted", "has no slope"),
        ("eap_ig", {}, "nll", "zero", "ablation=zero does not fit method=eap_ig"),
        ("clean_corrupted", {}, "nll", "mean", "ablation=mean does not fit method=clean_corrupted"),
        ("eap_ig", {"interpolate": "weights"}, "nll", "corrupted", "method.interpolate=weights is not known"),
        ("eap_ig", {"steps": 0}, "nll", "corrupted", "method.steps=0 is not allowed"),
        (
            "random",
            {"edges": 10**6},
            "nll",
            "corrupted",
            "method.edges=1000000 is not allowed: this model has 46 edges",
        ),
        ("random", {"seed": -1}, "nll", "corrupted", "method.seed=-1 is not allowed"),
    ],
)
def test_what_says_nothing_is_refused(
    method: str, options: dict[str, Any], metric: str, ablation: str, said: str
) -> None:
    one = experiment(small("gpt2"), random_pairs(0), metric, ablation)
    with pytest.raises(ConfigError, match=said):
        discover(one, method=method, **options)


def test_acdc_is_asked_for_no_scores() -> None:
    with pytest.raises(ConfigError, match="method=acdc does not score every edge: choose one of acdc_scores, eap"):
        score(experiment(small("gpt2"), random_pairs(0)), method="acdc")


@pytest.mark.parametrize("ablation", ["zero", "mean", "noise"])
def test_activations_go_from_the_ablated_to_the_clean_ones(ablation: str) -> None:
    """By the only path with one step, the clean run: each group cuts what it replaces, all else is EAP."""
    one = experiment(small("gpt2", 4), random_pairs(1), "nll", ablation)
    found, eap = (scores_of(one, "eap_ig", interpolate="activations", steps=1), scores_of(one, "eap"))
    into_logits = [edge for edge in eap if edge.receiver == "logits"]
    assert [found[e] for e in into_logits] == pytest.approx([eap[e] for e in into_logits], rel=1e-4, abs=1e-6)
    into_last = [edge for edge in eap if edge.receiver in ("m1",)]  # not while m1 itself is replaced: 4 of 5 groups
    assert [found[e] for e in into_last] == pytest.approx([0.8 * eap[e] for e in into_last], rel=1e-4, abs=1e-6)
