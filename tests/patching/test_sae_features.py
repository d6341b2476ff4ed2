"""Patched features against hooks of TransformerLens, attributions against differences, and what must hold exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import Small, experiment, naive_value, random_pairs, rows_of, small
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor

from acdc import Experiment
from acdc.engine.resumed import ResumedRun
from acdc.errors import AcdcError
from acdc.patching import patch
from acdc.patching.base import correlation
from acdc.patching.sae import gradient
from acdc.patching.sae_reconstruction import GOOD
from acdc.tasks.base import Pair, Task

HOOKS = {  # where one stands, and what the bridge calls it
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
}
D_SAE = 12


def make_sae(folder: Path, kind: str, hook: str, layer: int = 0, d_in: int = 8, seed: int = 0) -> Path:
    """A folder with a random autoencoder, of which about half of the features are active at a token."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "W_enc": torch.randn(d_in, D_SAE, generator=generator),
        "b_enc": 0.3 * torch.randn(D_SAE, generator=generator),
        "W_dec": torch.randn(D_SAE, d_in, generator=generator),
        "b_dec": 0.3 * torch.randn(d_in, generator=generator),
        "threshold": torch.rand(D_SAE, generator=generator),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"kind": kind, "hook": hook, "layer": layer, "k": 4}))
    return folder


class Hooked:
    """The oracle: the formula of the autoencoder on what the bridge's hook sees, and a run of the bridge for each
    feature in which the activation is the decoded features, one of them from the other run, plus the error."""

    def __init__(self, model: Small, pairs: list[Pair], metric: str, folder: Path) -> None:
        from safetensors.torch import load_file

        self.bridge, self.rows, self.metric = model.bridge, rows_of(pairs), metric
        self.weights, cfg = load_file(folder / "sae.safetensors"), json.loads((folder / "cfg.json").read_text())
        self.kind, self.name = cfg["kind"], f"blocks.{cfg['layer']}.{HOOKS[cfg['hook']]}"
        self.tokens = {"clean": self.rows.clean, "corrupted": self.rows.corrupted}
        self.seen = {n: self.bridge.run_with_cache(t)[1][self.name] for n, t in self.tokens.items()}
        self.features = {name: self.encode(x) for name, x in self.seen.items()}
        self.full = self.read(self.bridge(self.tokens["clean"]))

    def encode(self, x: Tensor) -> Tensor:
        w = self.weights
        before = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        if self.kind == "jumprelu":
            return torch.where(before > w["threshold"], before, 0)
        if self.kind == "topk":
            return torch.where(before >= before.topk(4).values[..., -1:], before, 0).clamp_min(0)
        return before.clamp_min(0)

    def decode(self, f: Tensor) -> Tensor:
        return f @ self.weights["W_dec"] + self.weights["b_dec"]

    def read(self, logits: Tensor) -> Tensor:
        return logits[range(len(self.rows.positions)), self.rows.positions]

    def value(self, logits: Tensor, metric: str | None = None) -> float:
        each = zip(self.read(logits).tolist(), self.full.tolist(), self.rows.answers, self.rows.wrong, strict=True)
        values = [naive_value(metric or self.metric, *row) for row in each]
        return sum(w * v for w, v in zip(self.rows.weights, values, strict=True))

    def end(self, run: str) -> float:
        return self.value(self.bridge(self.tokens[run]))

    def replaced(self, run: str, activation: Tensor, metric: str | None = None) -> float:
        """The metric of a run with another activation at the site."""
        fired = []

        def put(value: Tensor, hook: Any) -> Tensor:
            fired.append(hook)
            return activation

        value = self.value(self.bridge.run_with_hooks(self.tokens[run], fwd_hooks=[(self.name, put)]), metric)
        assert len(fired) == 1, self.name
        return value

    def patched(self, feature: int, direction: str, positions: list[int]) -> float:
        base, source = ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")
        f = self.features[base].clone()
        error = self.seen[base] - self.decode(f)
        f[:, positions, feature] = self.features[source][:, positions, feature]
        return self.replaced(base, self.decode(f) + error)


CASES = [
    ("gpt2", "relu", "resid_pre", 1, "logit_diff"),
    ("gpt2", "topk", "mlp_out", 0, "kl_div"),
    ("gpt2", "jumprelu", "attn_out", 0, "prob_diff"),
    ("llama", "jumprelu", "resid_post", 0, "nll"),
    ("llama", "relu", "attn_out", 1, "logit_diff"),
    ("gpt_neox", "relu", "attn_out", 0, "logit_diff"),
    ("gpt_neox", "topk", "mlp_out", 0, "l2"),
    ("attention_only", "topk", "resid_post", 1, "logit_diff"),
    ("bidirectional", "relu", "mlp_out", 0, "logit_diff"),
]


@pytest.mark.parametrize(("family", "kind", "hook", "layer", "metric"), CASES)
def test_a_patched_feature_is_what_a_hook_does(
    family: str, kind: str, hook: str, layer: int, metric: str, tmp_path: Path
) -> None:
    model = small(family, 3)
    pairs = random_pairs(7, (5, 5), positions=2 if kind == "relu" else None, partners=2 if kind == "topk" else 1)
    folder = make_sae(tmp_path / "sae", kind, hook, layer)
    oracle = Hooked(model, pairs, metric, folder)
    one = experiment(model, pairs, metric)
    clean, corrupted = oracle.end("clean"), oracle.end("corrupted")
    for by, places in (("feature", [list(range(5))]), ("feature_position", [[1], [4]])):
        chosen = None if by == "feature" else [1, 4]
        found = patch(one, "sae", path=str(folder), by=by, positions=chosen)
        active = sorted(
            {j for f in oracle.features.values() for j in (f > 0).flatten(0, 1).any(0).nonzero().flatten().tolist()}
        )
        rows = iter(found.rows())
        for direction in ("noise", "denoise"):
            for feature in active:
                for where in places:
                    row = next(rows)
                    expected = oracle.patched(feature, direction, where)
                    about = (direction, feature, where)
                    assert (row["feature"], row["direction"], row["site"], row["layer"]) == (
                        feature,
                        direction,
                        hook,
                        layer,
                    )
                    assert row["metric"] == pytest.approx(expected, abs=2e-5, rel=1e-4), about
                    recovery = (expected - corrupted) / (clean - corrupted)
                    assert row["recovery"] == pytest.approx(recovery, abs=1e-4, rel=1e-3), about
                    assert row["effect"] == pytest.approx(
                        recovery if direction == "denoise" else 1 - recovery, abs=1e-4, rel=1e-3
                    )
        assert next(rows, None) is None


@pytest.mark.parametrize(("family", "kind", "hook", "layer", "metric"), CASES[:2] + CASES[3:7:2])
def test_the_reconstruction_is_what_a_hook_does(
    family: str, kind: str, hook: str, layer: int, metric: str, tmp_path: Path
) -> None:
    model, pairs = small(family, 3), random_pairs(7, (5, 5, 5))
    folder = make_sae(tmp_path / "sae", kind, hook, layer)
    oracle = Hooked(model, pairs, metric, folder)
    found = patch(experiment(model, pairs, metric), "sae", path=str(folder), direction="denoise").reconstruction
    x, f = (torch.cat([d["clean"], d["corrupted"]]).double() for d in (oracle.seen, oracle.features))
    for explained, some in ((found.explained, slice(None)), (found.explained_later, slice(1, None))):
        flat = x[:, some].flatten(0, 1)
        error = x[:, some] - f[:, some] @ oracle.weights["W_dec"].double() - oracle.weights["b_dec"].double()
        assert explained == pytest.approx(
            1 - float(error.square().sum() / (flat - flat.mean(0)).square().sum()), abs=1e-4
        )
    assert found.l0 == pytest.approx(float((f > 0).sum(-1).double().mean()))
    assert (found.tokens, found.features) == (30, D_SAE)
    back = oracle.decode(oracle.features["clean"])
    assert found.metric == pytest.approx(oracle.replaced("clean", back), abs=1e-5, rel=1e-4)
    clean, corrupted = oracle.end("clean"), oracle.end("corrupted")
    assert found.recovered == pytest.approx((found.metric - corrupted) / (clean - corrupted), abs=1e-3)
    losses = [oracle.replaced("clean", value, "nll") for value in (oracle.seen["clean"], back, torch.zeros_like(back))]
    assert found.loss == "nll"
    assert list(found.losses) == pytest.approx(losses, abs=1e-4, rel=1e-4)
    assert found.loss_recovered == pytest.approx((losses[2] - losses[1]) / (losses[2] - losses[0]), abs=1e-3)
    assert bool(found.problems) == (found.explained < GOOD or abs(found.recovered - 1) > 1 - GOOD)


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize(("family", "kind", "hook", "layer", "metric"), [c for c in CASES if c[4] != "l2"])
def test_attribution_is_the_slope_of_the_metric(
    family: str, kind: str, hook: str, layer: int, metric: str, direction: str, tmp_path: Path
) -> None:
    """The metric a small step of the change either way, in float64; the features are the oracle's."""
    if metric == "kl_div" and direction == "noise":
        pytest.skip("its slope in the clean run is nil")
    model, pairs = small(family, 3), random_pairs(7, (5, 5), partners=2)
    folder = make_sae(tmp_path / "sae", kind, hook, layer)
    one = experiment(model, pairs, metric).to("cpu", torch.float64)
    found = patch(one, "sae", path=str(folder), direction=direction)
    clean, corrupted = found.clean, found.corrupted
    base, source = ("clean", "corrupted") if direction == "noise" else ("corrupted", "clean")
    values = {"clean": one.clean, "corrupted": one.ablated}
    runs = {name: ResumedRun(one, v) for name, v in values.items()}
    oracle = Hooked(model, pairs, metric, folder)
    f = {n: x.double() for n, x in oracle.features.items()}
    step = 1e-4
    for feature, attribution in zip(found.maps[0].grid.units, found.attributions[0][:, 0].tolist(), strict=True):
        change = (f[source] - f[base])[..., feature, None] * oracle.weights["W_dec"][feature].double()
        ends = [
            float(
                (
                    runs[base].metric_values(layer, found.maps[0].grid.kind.point, s * change[None])
                    * one.readouts.weight
                ).sum()
            )
            for s in (step, -step)
        ]
        slope = (ends[0] - ends[1]) / (2 * step) / (clean - corrupted)
        assert attribution == pytest.approx(slope if direction == "denoise" else -slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("point", ["pre", "mid", "post"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "attention_only", "bidirectional"])
def test_the_gradient_is_that_of_finite_differences(family: str, point: str) -> None:
    one = experiment(small(family, 3), random_pairs(7, (5, 4) if family != "bidirectional" else (5, 5)), "logit_diff")
    one = one.to("cpu", torch.float64)
    run = ResumedRun(one, one.clean)
    slope = gradient(run, 0, point)
    direction = torch.randn(slope.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = [
        float((run.metric_values(0, point, s * direction[None]) * one.readouts.weight).sum()) for s in (1e-5, -1e-5)
    ]
    assert float((slope * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


# What must hold exactly.


def test_a_feature_that_is_not_active_or_the_same_has_no_effect_at_all(tmp_path: Path) -> None:
    pairs = [Pair([1, 2, 3, 4], [1, 2, 5, 4], [6], [7]), Pair([4, 1, 3, 4], [4, 1, 7, 4], [2], [3])]
    one = experiment(small("gpt2", 3), pairs, "logit_diff")
    folder = str(make_sae(tmp_path / "sae", "topk", "resid_pre"))
    found = patch(one, "sae", path=folder, by="feature_position", features=list(range(D_SAE)))
    assert 0 < len(found.reconstruction.active) <= D_SAE
    for i in range(2):
        assert torch.equal(found.effects(i)[:, :2], torch.zeros(D_SAE, 2, dtype=torch.float64))
        assert bool(found.effects(i)[:, 2].any())
    silent = [j for j in range(D_SAE) if j not in found.reconstruction.active.tolist()]
    for row in found.rows():
        if row["feature"] in silent:
            assert (row["effect"], row["attribution"], row["activation"], row["tokens"]) == (0, 0, 0, "")


def test_memory_decides_nothing(tmp_path: Path) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7, (5, 4, 5), partners=2), "logit_diff")
    folder = str(make_sae(tmp_path / "sae", "relu", "resid_post"))
    wide = patch(one, "sae", path=folder)
    for memory in (2e-5, 1e-6):  # some features at once; blocks of rows
        thin = patch(one, "sae", path=folder, memory_gb=memory)
        for a, b in zip(wide.rows(), thin.rows(), strict=True):
            assert {k: v for k, v in a.items() if isinstance(v, str)} == {
                k: v for k, v in b.items() if isinstance(v, str)
            }
            for key in ("recovery", "std", "attribution", "activation"):
                assert a[key] == pytest.approx(b[key], abs=1e-5)
        check, same = wide.reconstruction, thin.reconstruction
        for key in ("tokens", "l0", "explained", "explained_later", "metric", "losses"):
            assert getattr(check, key) == pytest.approx(getattr(same, key), abs=1e-5)
        assert torch.equal(check.active, same.active)


def test_what_lies_behind_a_prompt_counts_nowhere(tmp_path: Path) -> None:
    """Pairs of three lengths together are the same pairs one by one."""
    pairs, folder = random_pairs(5, (3, 6, 5)), str(make_sae(tmp_path / "sae", "relu", "resid_post"))
    model = small("gpt2", 3)
    found = patch(experiment(model, pairs, "logit_diff"), "sae", path=folder, features=list(range(D_SAE)))
    alone = [
        patch(experiment(model, [pair], "logit_diff"), "sae", path=folder, features=list(range(D_SAE)))
        for pair in pairs
    ]
    for i, one in enumerate(found.maps):
        for j, other in enumerate(alone):
            torch.testing.assert_close(one.values[..., j], other.maps[i].values[..., 0], atol=1e-5, rtol=0)
    assert found.reconstruction.tokens == sum(other.reconstruction.tokens for other in alone) == 28
    total = sum(other.reconstruction.l0 * other.reconstruction.tokens for other in alone)
    assert found.reconstruction.l0 == pytest.approx(total / 28)
    most = {row["feature"]: row["activation"] for row in found.rows()}
    for feature, value in most.items():
        others = [row["activation"] for other in alone for row in other.rows() if row["feature"] == feature]
        assert value == pytest.approx(max(others), rel=1e-5)


def test_the_most_are_those_of_the_largest_attribution(tmp_path: Path) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), "logit_diff")
    folder = str(make_sae(tmp_path / "sae", "relu", "resid_post"))
    whole = patch(one, "sae", path=folder)
    some = patch(one, "sae", path=folder, most=3)
    size = torch.stack(whole.attributions).abs().amax((0, 2))
    best = sorted(size.argsort(descending=True)[:3].tolist())
    assert some.maps[0].grid.units == tuple(whole.maps[0].grid.units[i] for i in best)
    assert {row["subset"] for row in some.rows()} == {"most=3"}
    for i in range(2):
        torch.testing.assert_close(some.effects(i), whole.effects(i)[best], atol=1e-5, rtol=0)
        assert torch.equal(some.attributions[i], whole.attributions[i][best])


def test_what_does_not_vary_has_no_correlation() -> None:
    a, flat = torch.tensor([1.0, 2.0, 4.0]), torch.ones(3)
    assert correlation(spearmanr, a, torch.tensor([1.0, 8.0, 9.0])) == pytest.approx(1)
    for other in (flat, torch.tensor([1.0, float("nan"), 2.0])):
        assert math.isnan(correlation(spearmanr, a, other))
    assert math.isnan(correlation(spearmanr, a[:1], a[:1]))


def test_ranks_in_the_rows(tmp_path: Path) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), "logit_diff")
    found = patch(one, "sae", path=str(make_sae(tmp_path / "sae", "relu", "resid_post")), direction="noise")
    rows = found.rows()
    for key in ("effect", "attribution"):
        ordered = sorted(rows, key=lambda row: row[f"rank_{key}"])
        assert [row[f"rank_{key}"] for row in ordered] == list(range(1, len(rows) + 1))
        sizes = [abs(row[key]) for row in ordered]
        assert sizes == sorted(sizes, reverse=True)


def test_a_metric_at_its_minimum_has_no_attribution(tmp_path: Path) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), "kl_div")
    folder = str(make_sae(tmp_path / "sae", "relu", "resid_post"))
    found = patch(one, "sae", path=folder)
    rows = [row for row in found.rows() if row["direction"] == "noise"]
    assert {row["attribution"] for row in rows} == {row["rank_attribution"] for row in rows} == {None}
    assert any("noising has no attribution" in note for note in found.notes())
    with pytest.raises(AcdcError, match=r"^patch\.most ranks by attribution, which says nothing when noising"):
        patch(one, "sae", path=folder, direction="noise", most=2)


def test_examples_are_where_a_feature_is_most_active(tmp_path: Path) -> None:
    pairs = [replace(pair, labels={"last": -1}) for pair in random_pairs(7, (5, 5, 5))]
    model, folder = small("gpt2", 3), make_sae(tmp_path / "sae", "relu", "resid_pre")
    found = patch(experiment(model, pairs, "logit_diff"), "sae", path=str(folder))
    oracle = Hooked(model, pairs, "logit_diff", folder)
    for feature, examples in found.examples.items():
        largest: dict[int, float] = {}
        for run, f in oracle.features.items():
            for token, value in zip(
                oracle.tokens[run].flatten().tolist(), f[..., feature].flatten().tolist(), strict=True
            ):
                largest[token] = max(value, largest.get(token, 0.0))
        expected = sorted((v for v in largest.values() if v > 0), reverse=True)[:5]
        assert [e.activation for e in examples] == pytest.approx(expected, abs=1e-5)
        for e in examples:
            token = int(oracle.tokens[e.run][e.pair, e.position])
            assert (e.token, e.label) == (str(token), "last" if e.position == 4 else "")
            assert float(oracle.features[e.run][e.pair, e.position, feature]) == pytest.approx(e.activation, abs=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "position"}, "patch.by=position is not known: choose feature or feature_position"),
        ({"direction": "up"}, "patch.direction=up is not known"),
        ({"most": 0}, "patch.most=0 is not allowed"),
        ({"features": [0, 12]}, "patch.features=12 is not there: give numbers from 0 to 11"),
        ({"features": []}, "patch.features=[] is not there"),
        ({"positions": 5}, "patch.positions=5 lies outside the prompts of 5 tokens"),
        ({"path": "nowhere"}, "patch.path=nowhere is not the folder of a sparse autoencoder"),
        ({"path": None, "sae": "gemma"}, "patch.sae=gemma is not known: choose pocket"),
        ({"path": None}, "the autoencoder pocket reads 128 dimensions, but"),
        ({"feature": 0}, "patch=sae has no option feature: choose from name, sae"),
    ],
)
def test_what_cannot_be_patched_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = make_sae(tmp_path / "sae", "relu", "resid_post")
    with pytest.raises(AcdcError) as error:
        patch(experiment(small("gpt2", 3), random_pairs(7), "logit_diff"), "sae", **{"path": str(folder), **options})
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_an_autoencoder_of_another_place_is_refused(tmp_path: Path) -> None:
    one = experiment(small("gpt2", 3), random_pairs(7), "logit_diff")
    with pytest.raises(AcdcError, match=r"stands at resid_pre of layer 2, but .* has 2 layers"):
        patch(one, "sae", path=str(make_sae(tmp_path / "a", "relu", "resid_pre", layer=2)))
    with pytest.raises(AcdcError, match=r"reads 6 dimensions, but .* has d_model 8"):
        patch(one, "sae", path=str(make_sae(tmp_path / "b", "relu", "resid_pre", d_in=6)))
    bare = experiment(small("attention_only", 3), random_pairs(7), "logit_diff")
    with pytest.raises(AcdcError, match=r"stands at mlp_out of layer 0, but attention_only has no MLPs"):
        patch(bare, "sae", path=str(make_sae(tmp_path / "c", "relu", "mlp_out")))
    zeroed = experiment(small("gpt2", 3), random_pairs(7), "logit_diff", ablation="zero")
    with pytest.raises(AcdcError, match="ablation=zero does not fit job=patch"):
        patch(zeroed, "sae", path=str(make_sae(tmp_path / "d", "relu", "mlp_out")))
    same = [Pair([1, 2, 3], [1, 2, 3], [4], [5])]
    alike = Experiment.build(small("gpt2", 3).parts, Task("same", same, "logit_diff"))
    with pytest.raises(AcdcError, match="there is nothing to recover"):
        patch(alike, "sae", path=str(make_sae(tmp_path / "e", "relu", "mlp_out")))
