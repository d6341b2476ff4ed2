"""Causal tracing against hooks of TransformerLens, state by state, and what must hold exactly."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from experiments import Small, experiment, naive_value, random_pairs, rows_of, small
from torch import Tensor

from acdc import Experiment
from acdc.ablation import Ablation, Noise
from acdc.engine.resumed import ResumedRun
from acdc.errors import AcdcError
from acdc.patching import patch
from acdc.patching.positions import Place, traced_places
from acdc.patching.tracing import Restoring, Settings, check, noised_run, standard_noise, window_around
from acdc.patching.tracing_result import Traced
from acdc.tasks.base import Pair, Task

HOOKS = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out"}
# What Meng et al.'s code restores around each layer of six, for windows of one to four: [first, last + 1).
WINDOWS = {
    1: [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)],
    2: [(0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)],
    3: [(0, 2), (0, 3), (1, 4), (2, 5), (3, 6), (4, 6)],
    4: [(0, 2), (0, 3), (0, 4), (1, 5), (2, 6), (3, 6)],
}


def with_subjects(pairs: list[Pair], spans: list[list[int]]) -> list[Pair]:
    return [replace(pair, subject=span) for pair, span in zip(pairs, spans, strict=True)]


PAIRS = with_subjects(random_pairs(7, (6, 5, 6), n_answers=2), [[1, 2], [1, 3], [1, 4]])
EQUAL = with_subjects(random_pairs(8, (5, 5, 5)), [[1, 3], [2, 3], [1, 3]])


class Hooked:
    """The oracle: a run of the bridge for each state and draw, with hooks that add the noise and restore the state."""

    def __init__(self, bridge: Any, pairs: list[Pair], metric: str, noise: float, draws: int, seed: int) -> None:
        self.bridge, self.rows, self.metric, self.draws = bridge, rows_of(pairs), metric, draws
        self.spans = [range(*pair.subject) for pair in pairs if pair.subject is not None]
        _, self.cache = bridge.run_with_cache(self.rows.clean)
        subject = [row[list(span)] for row, span in zip(self.cache["hook_embed"], self.spans, strict=True)]
        numbers = torch.cat(subject).flatten().tolist()
        self.std = noise * statistics.stdev(numbers)
        place = Place("", "", tuple(frozenset(span) for span in self.spans))
        self.noise = standard_noise(place, self.cache["hook_embed"].shape[-1], draws, seed)
        self.full = self.read(bridge(self.rows.clean))

    def read(self, logits: Tensor) -> Tensor:
        return logits[range(len(self.rows.positions)), self.rows.positions]

    def by_pair(self, logits: Tensor) -> list[float]:
        each = zip(logits.tolist(), self.full.tolist(), self.rows.answers, self.rows.wrong, strict=True)
        return [naive_value(self.metric, *row) for row in each]

    def noised(self, draw: int, site: str = "", layers: range = range(0), token: int = 0) -> list[float]:
        """The metric of each pair under a draw of the noise, with one token's states restored."""
        fired: list[str] = []

        def add_noise(value: Tensor, hook: Any) -> Tensor:
            fired.append(hook.name)
            value = value.clone()
            for row, span in enumerate(self.spans):
                for i, at in enumerate(span):
                    value[row, at] += self.std * self.noise[row][draw, i].to(value.dtype)
            return value

        def restore(value: Tensor, hook: Any) -> Tensor:
            fired.append(hook.name)
            value = value.clone()
            value[:, token] = self.cache[hook.name][:, token]
            return value

        hooks = [("hook_embed", add_noise), *((f"blocks.{i}.{HOOKS[site]}", restore) for i in layers)]
        logits = self.bridge.run_with_hooks(self.rows.clean, fwd_hooks=hooks)
        assert len(fired) == len(hooks)
        return self.by_pair(self.read(logits))

    def mean(self, *state: Any) -> list[float]:
        """The mean over the draws, of each pair."""
        by_draw = [self.noised(draw, *state) for draw in range(self.draws)]
        return [statistics.mean(values) for values in zip(*by_draw, strict=True)]


def assert_like_hooks(found: Traced, oracle: Hooked, window: int, n_layers: int) -> None:
    """Every state's metric, and the table's numbers from their definitions."""
    clean, noised = oracle.by_pair(oracle.full), oracle.mean()
    assert found.clean.tolist() == pytest.approx(clean, abs=1e-4, rel=1e-4)
    assert found.noised.mean(0).tolist() == pytest.approx(noised, abs=1e-4, rel=1e-4)
    assert found.noise_std == pytest.approx(oracle.std, rel=1e-5)
    sign = 1 if oracle.metric in ("logit_diff", "prob_diff") else -1
    tolerance = 2e-4 * max(1.0, *map(abs, clean), *map(abs, noised))
    rows = {(row["site"], row["layer"], row["position"]): row for row in found.rows()}
    assert len(rows) == len(found.maps) * n_layers * len(found.places)
    for one in found.maps:
        for layer in range(n_layers):
            start, stop = WINDOWS[1 if one.site == "resid_post" else window][layer]
            layers = range(start, min(stop, n_layers))
            theirs = [oracle.mean(one.site, layers, token) for token in range(one.values.shape[1])]
            for token, pair in ((t, p) for t in range(len(theirs)) for p in range(len(clean))):
                ours = float(one.values[layer, token, pair])
                if token < oracle.rows.lengths[pair]:
                    assert ours == pytest.approx(theirs[token][pair], abs=1e-4, rel=1e-4), (one.site, layer, token)
                else:
                    assert math.isnan(ours)
            for place in found.places:
                effects, total = [], []
                for pair, tokens in enumerate(place.tokens):
                    if tokens:
                        restored = statistics.mean(theirs[token][pair] for token in tokens)
                        effects.append(sign * (restored - noised[pair]))
                        total.append(sign * (clean[pair] - noised[pair]))
                row = rows[one.site, layer, place.name]
                assert (row["n"], row["draws"]) == (len(effects), oracle.draws)
                assert row["effect"] == pytest.approx(statistics.mean(effects), abs=tolerance)
                assert row["total_effect"] == pytest.approx(statistics.mean(total), abs=tolerance)
                assert row["recovery"] == pytest.approx(sum(effects) / sum(total), abs=2e-3, rel=2e-3)
                if len(effects) > 1:
                    std = statistics.stdev(effects)
                    assert row["std"] == pytest.approx(std, abs=tolerance)
                    assert row["se"] == pytest.approx(std / math.sqrt(len(effects)), abs=tolerance)
                else:
                    assert (row["std"], row["se"]) == (None, None)


@pytest.mark.parametrize(
    ("kind", "metric", "window", "pairs"),
    [
        ("gpt2", "logit_diff", 2, PAIRS),
        ("llama", "kl_div", 3, PAIRS),
        ("gpt_neox", "nll", 2, PAIRS),
        ("gpt_neox_sequential", "prob_diff", 1, EQUAL),
        ("attention_only", "logit_diff", 2, EQUAL),
        ("bidirectional", "logit_diff", 2, EQUAL),
    ],
)
def test_every_state_is_what_hooks_restore(kind: str, metric: str, window: int, pairs: list[Pair]) -> None:
    config = {"num_key_value_heads": 2} if kind == "llama" else {}
    model = small(kind, 3, n_layers=3, **config)
    by = "position" if pairs is EQUAL else "role"
    found = patch(experiment(model, pairs, metric), "tracing", by=by, noise=2.0, draws=2, seed=5, window=window)
    sites = ["resid_post", "attn_out"] if kind == "attention_only" else ["resid_post", "mlp_out", "attn_out"]
    assert [one.site for one in found.maps] == sites
    assert_like_hooks(found, Hooked(model.bridge, pairs, metric, 2.0, 2, 5), window, 3)


# What must hold exactly.


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox"])
def test_all_of_the_stream_is_the_clean_run(kind: str) -> None:
    plan = check(experiment(small(kind, 3), PAIRS), Settings(draws=1))
    one = plan.experiment
    clean, noised = ResumedRun(one, one.clean), noised_run(plan, one, 0)
    assert not torch.allclose(noised.unchanged, clean.unchanged, atol=1e-3)
    everywhere = torch.ones(1, *one.batch.clean.shape, dtype=torch.bool)
    for layer in range(2):
        found = Restoring(noised, clean, 2**20)("resid_post", range(layer, layer + 1), everywhere)[0]
        torch.testing.assert_close(found, clean.unchanged, atol=1e-5, rtol=0)


@pytest.mark.parametrize("metric", ["logit_diff", "nll"])
def test_the_last_state_is_all_and_what_is_before_the_subject_nothing(metric: str) -> None:
    found = patch(experiment(small("gpt2", 3), EQUAL, metric), "tracing", by="position", draws=3)
    resid, mlp, attention = (found.effects(one) for one in found.maps)
    torch.testing.assert_close(resid.recovery[-1], torch.tensor([0.0, 0, 0, 0, 1]).double(), atol=1e-5, rtol=0)
    assert float(resid.indirect[-1, -1]) == pytest.approx(float(found.total_effects.mean()), abs=1e-5)
    for effects in (resid, mlp, attention):
        assert torch.equal(effects.indirect[:, 0], torch.zeros(2).double())  # exactly: it is clean already
    assert {found.places[i].name for i in range(5) if found.is_noised(found.places[i])} == {"1", "2"}


def test_windows_are_those_of_the_original() -> None:
    for window, spans in WINDOWS.items():
        assert [(w.start, w.stop) for w in (window_around(layer, window, 6) for layer in range(6))] == spans
    # Ten of 48 layers, as in the paper, of which 24 is the sixth.
    assert window_around(24, Settings().window_of("mlp_out", 48), 48) == range(19, 29)
    assert [Settings().window_of("attn_out", n) for n in (1, 4, 12, 28, 48)] == [1, 1, 3, 7, 10]


def test_roles() -> None:
    spans = [[1, 2], [2, 6], [0, 2], [3, 5]]
    pairs = with_subjects(random_pairs(3, (5, 9, 3, 5)), spans)
    one = experiment(small("gpt2", 3), pairs)
    found = traced_places(one, check(one, Settings(draws=1)).subject, "role")
    assert {place.name: [sorted(tokens) for tokens in place.tokens] for place in found} == {
        "first_subject": [[1], [2], [0], [3]],
        "middle_subject": [[], [3, 4], [], []],
        "last_subject": [[1], [5], [1], [4]],
        "first_subsequent": [[2], [6], [2], []],
        "further": [[3], [7], [], []],
        "last": [[4], [8], [2], [4]],
    }
    # Subjects of one token right before the last one: two roles are left.
    short = experiment(small("gpt2", 3), with_subjects(random_pairs(3, (4, 5)), [[2, 3], [3, 4]]))
    found = traced_places(short, check(short, Settings(draws=1)).subject, "role")
    assert [place.name for place in found] == ["last_subject", "last"]
    # Without a causal mask noise reaches what is before the subject.
    both_ways = experiment(small("bidirectional", 1), EQUAL)
    assert traced_places(both_ways, check(both_ways, Settings()).subject, "role")[0].name == "earlier"


def test_subjects_by_label_and_span() -> None:
    labelled = [replace(pair, subject=None, labels={"thing": [1, 3]}) for pair in EQUAL]
    one = experiment(small("gpt2", 3), labelled)
    by_label, by_span = (patch(one, "tracing", subject=subject, draws=2) for subject in ("thing", "1:3"))
    own = patch(experiment(small("gpt2", 3), with_subjects(EQUAL, [[1, 3]] * 3)), "tracing", draws=2)
    assert by_label.rows() == by_span.rows() == own.rows()
    assert patch(one, "tracing", subject=1, draws=2).rows() != own.rows()


def test_corrupted_prompts_split_embeddings_and_blocks_change_nothing() -> None:
    model, options = small("gpt2", 3), {"draws": 2, "window": 2}
    expected = patch(experiment(model, PAIRS), "tracing", **options)
    several = [replace(pair, corrupted=[pair.corrupted, pair.clean[::-1], pair.clean]) for pair in PAIRS]
    split = Experiment.build(
        replace(model.parts, config=replace(model.parts.config, split_embedding=True)), Task("random", PAIRS, "kl_div")
    )
    assert len(split.clean.inputs) == 2
    others = [
        patch(experiment(model, several), "tracing", **options),
        patch(split, "tracing", **options),
        patch(experiment(model, PAIRS), "tracing", memory_gb=1e-6, **options),
    ]
    for other in others:
        for one, same in zip(expected.maps, other.maps, strict=True):
            torch.testing.assert_close(same.values, one.values, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert not torch.equal(patch(experiment(model, PAIRS), "tracing", seed=1, **options).noised, expected.noised)


def test_progress_ends_where_it_said() -> None:
    from acdc.patching import tracing

    told: list[tuple[int, int]] = []
    tracing.patch(experiment(small("gpt2", 3), PAIRS), Settings(draws=2, site="mlp_out"), lambda *now: told.append(now))
    assert told[-1] == (2 * 2 * 5, 2 * 2 * 5)  # layers × draws × tokens from the subject on
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def refused(model: Small, pairs: list[Pair], ablation: str | Ablation = "corrupted", **options: Any) -> str:
    with pytest.raises(AcdcError) as caught:
        patch(experiment(model, pairs, ablation=ablation), "tracing", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_traced_is_refused() -> None:
    model = small("gpt2", 3)
    without = [replace(EQUAL[0], subject=None, labels={"thing": 1}), *EQUAL[1:]]
    assert "names none, so set patch.subject: give indices from 0 to 4" in refused(model, without)
    assert "patch.subject=thing: pair 1 has no such label" in refused(model, without, subject="thing")
    assert "patch.subject=9" in refused(model, EQUAL, subject=9)
    assert "patch.subject=1:3: the pairs have 5 to 6 tokens" in refused(model, PAIRS, subject="1:3")
    assert "choose patch.by=role" in refused(model, PAIRS, by="position")
    assert "choose role or position" in refused(model, PAIRS, by="head")
    assert "resid_post, mlp_out, attn_out" in refused(model, PAIRS, site=["mlp_out", "q"])
    assert "has no MLPs" in refused(small("attention_only", 1), EQUAL, site="mlp_out")
    for key, value in (("noise", 0.0), ("noise", math.inf), ("draws", 0), ("window", 0), ("memory_gb", 0.0)):
        assert f"patch.{key}=" in refused(model, PAIRS, **{key: value})
    assert "patch.window has no effect with patch.site=resid_post" in refused(model, PAIRS, site="resid_post", window=2)
    for ablation in ("zero", Noise(draws=2)):
        assert "has no effect with patch=tracing" in refused(model, EQUAL, ablation)
    # Noise behind where the metric reads never reaches it.
    early = [replace(pair, position=0) for pair in EQUAL]
    assert "with and without noise" in refused(model, early)
