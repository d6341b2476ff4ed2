"""Path patching against hooks of TransformerLens, against edges removed by the full engine, and what must hold."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path as File
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from experiments import KINDS, experiment, naive_value, random_pairs, rows_of, small
from torch import Tensor

from acdc import Experiment
from acdc.engine.full import FullEngine
from acdc.engine.mask import EdgeMask
from acdc.errors import AcdcError
from acdc.graph import Edge, Graph, GraphSettings
from acdc.model import ModelSettings, load_model
from acdc.patching import patch, path
from acdc.patching.path_result import PatchedPaths
from acdc.tasks.base import Pair, Task


class Hooked:
    """The oracle: Wang et al.'s two passes, each a run of the bridge with hooks that must all fire."""

    def __init__(self, bridge: Any, pairs: list[Pair], metric: str) -> None:
        for switch in ("set_use_split_qkv_input", "set_use_hook_mlp_in"):
            getattr(bridge, switch)(True)
        self.bridge, self.rows, self.metric, self.n_pairs = bridge, rows_of(pairs), metric, len(pairs)
        self.tokens = {"clean": self.rows.clean, "corrupted": self.rows.corrupted}
        self.caches = {name: bridge.run_with_cache(tokens)[1] for name, tokens in self.tokens.items()}
        self.full = self.read(bridge(self.tokens["clean"]))
        self.ends = [self.mean(bridge(self.tokens[name])) for name in ("clean", "corrupted")]
        self.n_layers = bridge.cfg.n_layers

    def read(self, logits: Tensor) -> Tensor:
        return logits[range(len(self.rows.positions)), self.rows.positions]

    def mean(self, logits: Tensor) -> float:
        each = zip(self.read(logits).tolist(), self.full.tolist(), self.rows.answers, self.rows.wrong, strict=True)
        values = [naive_value(self.metric, *row) for row in each]
        return sum(value * weight for value, weight in zip(values, self.rows.weights, strict=True))

    def run(self, base: str, hooks: dict[str, Any]) -> Tensor:
        fired = dict.fromkeys(hooks, 0)

        def counted(name: str) -> Any:
            def hook(value: Tensor, hook: Any) -> Tensor:
                fired[name] += 1
                return hooks[name](value.clone())

            return hook

        logits = self.bridge.run_with_hooks(self.tokens[base], fwd_hooks=[(name, counted(name)) for name in hooks])
        assert set(fired.values()) == {1}, fired
        return logits

    def recovery(
        self,
        senders: list[str],
        receivers: list[str],
        direction: str,
        through: list[str],
        positions: list[int],
    ) -> float:
        base, source = ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")
        here, there = self.caches[base], self.caches[source]
        recorded: dict[str, Tensor] = {}
        hooks: dict[str, Any] = {}
        if "input" in senders:

            def embed(value: Tensor) -> Tensor:
                value[:, positions] = there["blocks.0.hook_in"][:, positions]
                return value

            hooks["blocks.0.hook_in"] = embed
        for i in range(self.n_layers):
            z, mlp = f"blocks.{i}.attn.hook_z", f"blocks.{i}.hook_mlp_out"

            def heads(value: Tensor, i: int = i, z: str = z) -> Tensor:
                for h in range(value.shape[2]):
                    if (name := f"a{i}.h{h}") in senders or name not in through:
                        value[:, :, h] = here[z][:, :, h]
                    if name in senders:
                        value[:, positions, h] = there[z][:, positions, h]
                return value

            def neurons(value: Tensor, i: int = i, mlp: str = mlp) -> Tensor:
                if (name := f"m{i}") in senders or name not in through:
                    value[:] = here[mlp]
                if name in senders:
                    value[:, positions] = there[mlp][:, positions]
                return value

            hooks |= {z: heads, mlp: neurons}
        for receiver in receivers:
            name = self.port(receiver)
            if name not in hooks:
                hooks[name] = lambda value, name=name: recorded.setdefault(name, value.clone())
        first = self.run(base, hooks)
        if receivers == ["logits"]:
            assert torch.allclose(self.run(base, {"ln_final.hook_in": lambda _: recorded["ln_final.hook_in"]}), first)
            return self.scaled(first)
        second = {}
        for name in recorded:

            def told(value: Tensor, name: str = name) -> Tensor:
                for receiver in receivers:
                    if self.port(receiver) == name:
                        at = self.unit(receiver, value.shape[2])
                        value[:, :, at] = recorded[name][:, :, at]
                return value

            second[name] = told
        return self.scaled(self.run(base, second))

    def port(self, receiver: str) -> str:
        if receiver == "logits":
            return "ln_final.hook_in"
        if receiver[0] == "m":
            return f"blocks.{receiver[1:]}.hook_mlp_in"
        return f"blocks.{receiver[1:].partition('.')[0]}.hook_{receiver[-2]}_input"

    def unit(self, receiver: str, n_units: int) -> Any:
        """The head of a port, or the group that it belongs to; everything of an MLP's input."""
        if receiver[0] == "m":
            return slice(None)
        return int(receiver.partition(".h")[2][:-3]) // (self.bridge.cfg.n_heads // n_units)

    def scaled(self, logits: Tensor) -> float:
        clean, corrupted = self.ends
        return (self.mean(logits) - corrupted) / (clean - corrupted)


def ports(names: list[str]) -> list[str]:
    return [
        p for name in names for p in ([f"{name}<{x}>" for x in "qkv"] if name[0] == "a" and "<" not in name else [name])
    ]


SETS = [  # senders, receivers
    (["a0.h1"], ["logits"]),
    (["input"], ["m0"]),
    (["m0"], ["a1.h0<q>"]),
    (["a0.h0", "m0"], ["a2.h1"]),
    (["input"], ["a1.h0", "a1.h1"]),
    (["a0.h0", "a0.h1"], ["a1.h1<q>", "m1", "a2.h0<q>"]),
    (["input", "a1.h0"], ["a0.h0<q>", "a2.h1<q>", "m2"]),
    (["a1.h1", "m1"], ["a2.h0<q>", "a2.h1<q>"]),
]
THROUGH = {
    "none": [],
    "mlps": ["m0", "m1", "m2"],
    "heads": [f"a{i}.h{h}" for i in range(3) for h in range(2)],
    "a1.h0+m1": ["a1.h0", "m1"],
}


@cache
def hooked_model(kind: str) -> tuple[Any, Any]:
    config = {"num_key_value_heads": 2} if kind == "llama" else {}
    with TemporaryDirectory() as folder:
        path = make_checkpoint(kind, File(folder), 3, n_layers=3, **config)
        return load_model(ModelSettings("local", str(path), device="cpu"))


@pytest.mark.parametrize(
    ("kind", "through"),
    [
        *(("gpt2", through) for through in THROUGH),
        ("llama", "none"), ("llama", "heads"), ("gpt_neox", "none"), ("gpt_neox", "mlps"), ("gpt_neox", "a1.h0+m1"),
        ("gpt_neox_sequential", "mlps"),
    ],
)  # fmt: skip
def test_every_path_is_what_hooks_do(kind: str, through: str) -> None:
    model, bridge = hooked_model(kind)
    metric = {"none": "logit_diff", "mlps": "kl_div", "heads": "prob_diff", "a1.h0+m1": "nll"}[through]
    pairs = random_pairs(7, (5, 5, 5), positions=2 if through == "mlps" else None, partners=2)
    one, oracle = experiment(model, pairs, metric), Hooked(bridge, pairs, metric)
    sizes = []
    for i, (senders, receivers) in enumerate(SETS):
        positions: list[int] | None = [1, 3] if i % 3 == 2 else None
        found = patch(
            one, "path", senders=senders, receivers=receivers, sweep="none", through=through.split("+"),
            direction="both", positions=positions,
        )  # fmt: skip
        for row in found.rows():
            where = positions or list(range(5))
            theirs = oracle.recovery(senders, ports(receivers), row["direction"], THROUGH[through], where)
            about = (senders, receivers, row["direction"])
            assert row["recovery"] == pytest.approx(theirs, abs=1e-4, rel=1e-4), about
            sizes.append(abs(row["effect"]))
    assert sum(size > 1e-3 for size in sizes) > 10  # or the comparison would show nothing


def test_keys_and_values_of_a_group_are_what_hooks_do(tmp_path: File) -> None:
    model, bridge = load_model(
        ModelSettings("local", str(make_checkpoint("llama", tmp_path, 3, n_layers=2, n_heads=4)), device="cpu")
    )
    pairs = random_pairs(7)
    one, oracle = experiment(model, pairs), Hooked(bridge, pairs, "kl_div")
    assert one.model.layers[0].W_K.shape[0] == 2
    for letter in "kv":
        group = [f"a1.h2<{letter}>", f"a1.h3<{letter}>"]
        for receivers in (group, [*group, "m1"]):
            (row,) = patch(one, "path", senders="m0", receivers=receivers, sweep="none").rows()
            theirs = oracle.recovery(["m0"], receivers, "noise", [], list(range(5)))
            assert row["recovery"] == pytest.approx(theirs, abs=1e-4, rel=1e-4)


# Edges removed by the full engine.


def removed(one: Experiment, swapped: Experiment, edges: set[Edge], direction: str) -> float:
    """The metric of the run, clean or corrupted, without some edges: they carry the other run's values."""
    engine = FullEngine(one if direction == "noise" else swapped)
    logits = engine.logits([EdgeMask.of(one.graph, set(one.graph) - edges)], one.metric.columns)
    return float(one.metric.value(logits)[0])


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_direct_path_is_an_edge_removed(kind: str, direction: str) -> None:
    pairs = random_pairs(2, lengths=(4, 6, 5), positions=2)
    swapped = [replace(pair, clean=pair.corrupted, corrupted=pair.clean) for pair in pairs]
    one, other = (experiment(small(kind), these, "logit_diff") for these in (pairs, swapped))
    found = patch(one, "path", receivers=None, direction=direction)
    (paths,) = found.maps
    edges = [Edge(p.senders.name, p.receivers.name) for p in paths.paths]
    assert set(edges) == set(one.graph)
    for edge, row in zip(edges, found.rows(), strict=True):
        assert row["metric"] == pytest.approx(removed(one, other, {edge}, direction), abs=1e-4), str(edge)
    # All senders together are a port's whole input; receivers of one layer do not feed each other.
    whole = patch(one, "path", receivers=None, sweep="receivers", direction=direction)
    for row in whole.rows():
        edges_in = {edge for edge in one.graph if edge.receiver == row["receivers"]}
        assert (row["senders"], row["metric"]) == (
            "all",
            pytest.approx(removed(one, other, edges_in, direction), abs=1e-4),
        )
    layer = [f"a1.h{h}<{x}>" for h in range(2) for x in "qkv"]
    some = patch(one, "path", senders=["input", "a0.h1"], receivers=layer, sweep="senders", direction=direction)
    for sender, row in zip(("input", "a0.h1"), some.rows(), strict=True):
        edges_in = {Edge(sender, port) for port in layer}
        assert row["metric"] == pytest.approx(removed(one, other, edges_in, direction), abs=1e-4)


def test_token_and_position_are_senders_of_their_own(tmp_path: File) -> None:
    folder = make_checkpoint("gpt2", tmp_path)
    model, _ = load_model(ModelSettings("local", str(folder), device="cpu"), GraphSettings(split_embedding=True))
    pairs = random_pairs(2)
    one = experiment(model, pairs, "logit_diff")
    apart = patch(one, "path", senders=["input.tok", "input.pos"], receivers="m0").maps[0]
    both = patch(one, "path", senders="input", receivers="m0").maps[0]
    engine = FullEngine(one)
    mask = EdgeMask.of(one.graph, set(one.graph) - {Edge("input.tok", "m0")})
    assert float(apart.values[0].mean()) == pytest.approx(
        float(one.metric.value(engine.logits([mask], one.metric.columns))), abs=1e-4
    )
    assert torch.equal(apart.values[1], apart.clean)  # positions are the same in both prompts
    torch.testing.assert_close(both.values[0], apart.values[0], atol=1e-5, rtol=0)
    assert both.paths[0].senders.members == ("input.tok", "input.pos")


# What must hold exactly.


def test_everything_but_the_logits_may_respond_is_the_whole_effect() -> None:
    """With everything in between free, a sender's path to the logits is its activation patched."""
    one = experiment(small("gpt2", 3, n_layers=3), random_pairs(7), "kl_div")
    heads = patch(one, "activation", site="head_output", direction="both")
    free = patch(one, "path", senders="heads", through=["heads", "mlps"], direction="both")
    for a, b in zip(heads.maps, free.maps, strict=True):
        torch.testing.assert_close(a.values.flatten(0, 2), b.values, atol=1e-5, rtol=0)


def test_what_is_the_same_in_both_runs_has_no_effect_at_all() -> None:
    pairs = [Pair([1, 2, 3, 4], [1, 2, 5, 4], [6], [7]), Pair([4, 1, 3, 4], [4, 1, 7, 4], [2], [3])]
    one = experiment(small("gpt2", 3), pairs, "logit_diff")
    for through in ("none", "mlps", "heads"):
        (found,) = patch(one, "path", receivers=None, positions="0:2", through=through).maps
        assert torch.equal(found.values, found.clean.expand_as(found.values))


def test_memory_decides_nothing() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, partners=2))
    for options in ({"receivers": None, "through": "mlps"}, {"receivers": ["a0.h0", "m1"], "sweep": "senders"}):
        wide = patch(one, "path", **options).maps[0]
        for memory in (2e-5, 1e-6):  # some paths at once; blocks of rows
            thin = patch(one, "path", memory_gb=memory, **options).maps[0]
            torch.testing.assert_close(wide.values, thin.values, atol=1e-5, rtol=0)


def test_spread_is_over_the_pairs() -> None:
    pairs = random_pairs(7, (4, 5, 6))
    model = small("llama", 3)
    row = patch(experiment(model, pairs, "logit_diff"), "path", senders="m0").rows()[0]
    alone = [patch(experiment(model, [pair], "logit_diff"), "path", senders="m0") for pair in pairs]
    gap = sum(found.clean - found.corrupted for found in alone) / 3
    each = [1 + (found.rows()[0]["metric"] - found.clean) / gap for found in alone]
    mean = sum(each) / 3
    std = math.sqrt(sum((x - mean) ** 2 for x in each) / 2)
    assert (row["recovery"], row["std"], row["n"]) == (pytest.approx(mean, abs=1e-5), pytest.approx(std, abs=1e-5), 3)
    assert alone[0].rows()[0]["std"] is None


def test_progress_comes_to_its_end() -> None:
    one = experiment(small("gpt2", 3, n_layers=3), random_pairs(7))
    for options in ({"receivers": None}, {"from_": "logits", "limit": 0.0}):
        heard: list[tuple[int, int]] = []
        found = path.patch(one, path.Settings(**options), lambda *now, heard=heard: heard.append(now))
        total = sum(len(m.paths) for m in found.maps)
        assert heard[-1] == (total, total)
        assert heard == sorted(heard)


def test_sweeps_take_one_at_a_time() -> None:
    one = experiment(small("gpt2", 3), random_pairs(7))

    def names(found: PatchedPaths) -> list[tuple[str, str]]:
        return [(row["senders"], row["receivers"]) for row in found.rows()]

    options: dict[str, Any] = {"senders": ["a0.h0", "m0"], "receivers": ["m0", "a1.h0", "a1.h1<k>"]}
    both = [("a0.h0", "m0"), ("a0.h0", "a1.h0"), ("m0", "a1.h0"), ("a0.h0", "a1.h1<k>"), ("m0", "a1.h1<k>")]
    assert names(patch(one, "path", **options)) == both
    receivers = "m0+a1.h0+a1.h1<k>"
    assert names(patch(one, "path", **options, sweep="senders")) == [("a0.h0", receivers), ("m0", receivers)]
    senders = [("a0.h0+m0", name) for name in ("m0", "a1.h0", "a1.h1<k>")]
    assert names(patch(one, "path", **options, sweep="receivers")) == senders
    assert names(patch(one, "path", **options, sweep="none")) == [("a0.h0+m0", receivers)]
    assert len(names(patch(one, "path", receivers=None))) == len(Graph(one.model.config))
    heads = patch(one, "path", senders="heads", receivers=["mlps", "logits"])
    assert {row["receivers"] for row in heads.rows()} == {"m0", "m1", "logits"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"senders": "a2.h0"},
            "patch.senders=a2.h0 is not in this model: give input, heads, mlps, a0.h0 to a1.h1, m0 to m1, or null",
        ),
        ({"senders": "logits"}, "patch.senders=logits is not in this model"),
        ({"senders": []}, "patch.senders is empty: give names, or null for all"),
        (
            {"receivers": "input"},
            "patch.receivers=input is not in this model: give logits, heads, mlps, a0.h0 to a1.h1 (or a port",
        ),
        ({"receivers": ["m0", "a0.h0<z>"]}, "patch.receivers=a0.h0<z> is not in this model"),
        (
            {"senders": ["m0", "m1"], "receivers": "m1"},
            "patch.senders=m1 has no path to or from any of patch.receivers",
        ),
        ({"senders": "m1", "receivers": ["logits", "m0"]}, "patch.receivers=m0 has no path"),
        ({"sweep": "all"}, "patch.sweep=all is not known: choose one of both, senders, receivers, none"),
        ({"sweep": "none", "receivers": ["m1", "logits"]}, "patch.sweep=none takes the logits together with other"),
        ({"sweep": "senders", "receivers": None}, "patch.sweep=senders takes the logits together"),
        ({"through": "neurons"}, "patch.through=neurons is not in this model: give none, heads, mlps, a0.h0 to"),
        ({"through": ["m0", "input"]}, "patch.through=input has nothing before it"),
        ({"direction": "up"}, "patch.direction=up is not known: choose one of noise, denoise, both"),
        ({"positions": 5}, "patch.positions=5 lies outside the prompts of 5 tokens"),
        ({"from_": "input"}, "patch.from=input is nothing that receives: give logits or a0.h0 to a1.h1 (or"),
        ({"from_": "logits", "receivers": "m1"}, "patch.receivers has no effect with patch.from"),
        ({"from_": "logits", "sweep": "none"}, "patch.sweep has no effect with patch.from"),
        ({"depth": 2}, "patch.depth has no effect without patch.from"),
        ({"from_": "logits", "depth": 0}, "patch.depth=0 is not allowed: give 1 or more"),
        ({"from_": "logits", "limit": -1.0}, "patch.limit=-1.0 is not allowed"),
        ({"memory_gb": 0.0}, "patch.memory_gb=0.0 is not allowed"),
        ({"sender": "m0"}, "patch=path has no option sender: choose from name, senders"),
    ],
)
def test_what_cannot_be_patched_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(AcdcError) as error:
        patch(experiment(small("gpt2", 3), random_pairs(7)), "path", **options)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_what_model_or_pairs_do_not_have_is_refused() -> None:
    pairs = random_pairs(7)
    with pytest.raises(AcdcError, match=r"patch.through=mlps is not in this model: give none, heads, a0.h0 to a1.h1$"):
        patch(experiment(small("attention_only", 1), pairs), "path", through="mlps")
    with pytest.raises(AcdcError, match="ablation=zero does not fit job=patch"):
        patch(experiment(small("gpt2", 3), pairs, ablation="zero"), "path")
    same = [Pair([1, 2, 3], [1, 2, 3], [4], [5])]
    with pytest.raises(AcdcError, match="there is nothing to recover"):
        patch(Experiment.build(small("gpt2", 3).parts, Task("same", same, "logit_diff")), "path")
