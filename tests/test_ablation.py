"""What removed edges carry, against the oracle's runs and plain sums."""

from __future__ import annotations

import oracle
import pytest
import torch
from experiments import KINDS, experiment, random_pairs, rows_of, small

from acdc.ablation import ABLATIONS, Noise, Values
from acdc.errors import ConfigError
from acdc.experiment import Experiment


def outputs(one: Experiment, values: Values) -> dict[str, torch.Tensor]:
    """What each sender writes into the residual stream, `pair pos d_model`."""
    graph = one.graph
    out = {name: values.inputs[i] for i, name in enumerate(graph.inputs)}
    for i, layer in enumerate(one.model.layers):
        for head in range(graph.config.n_heads):
            out[f"a{i}.h{head}"] = values.heads[i, head] @ layer.W_O[head]
        if layer.mlp is not None:
            out[f"m{i}"] = values.mlps[i]
    return out


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_senders_ablated_output_is_the_oracles(kind: str, ablation: str) -> None:
    pairs = random_pairs(1)
    one = experiment(small(kind), pairs, ablation=ablation)
    carried = oracle.ablated(small(kind).truth, rows_of(pairs).corrupted, ablation)
    ours = outputs(one, one.ablated)
    assert set(ours) == set(carried)
    for sender, value in carried.items():
        torch.testing.assert_close(ours[sender].double(), value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "attention_only"])
def test_clean_values_are_the_clean_run(kind: str) -> None:
    pairs = random_pairs(2)
    one = experiment(small(kind), pairs)
    _, expected = oracle.evaluate(small(kind).truth, rows_of(pairs).clean)
    for sender, value in outputs(one, one.clean).items():
        torch.testing.assert_close(value.double(), expected[sender], rtol=0, atol=1e-4)


def test_mean_is_over_the_pairs_at_each_position() -> None:
    pairs = random_pairs(3, lengths=(4, 4, 4))
    corrupted = experiment(small("gpt2"), pairs).ablated
    mean = experiment(small("gpt2"), pairs, ablation="mean").ablated
    for position in range(4):
        for pair in range(3):
            expected = sum(corrupted.mlps[:, row, position] for row in range(3)) / 3
            torch.testing.assert_close(mean.mlps[:, pair, position], expected)


def test_mean_of_several_partners() -> None:
    pairs = random_pairs(3, partners=3)
    one = experiment(small("gpt2"), pairs, ablation="mean")
    carried = oracle.ablated(small("gpt2").truth, rows_of(pairs).corrupted, "mean")
    torch.testing.assert_close(outputs(one, one.ablated)["m1"].double(), carried["m1"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mean", "noise"])
def test_averages_need_equal_lengths(name: str) -> None:
    with pytest.raises(ConfigError, match="4 to 6 tokens") as caught:
        experiment(small("gpt2"), random_pairs(0, lengths=(4, 6)), ablation=name)
    assert f"ablation={name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def noise(pairs: list, **settings: float) -> tuple[Values, Values]:
    one = experiment(small("gpt2"), pairs, ablation=Noise(**settings))
    return one.clean, one.ablated


def test_noise_without_scale_is_the_clean_run() -> None:
    clean, ablated = noise(random_pairs(0), scale=0.0)
    for name in ("inputs", "heads", "mlps"):
        assert torch.equal(getattr(clean, name), getattr(ablated, name))


def test_noise_comes_from_its_seed() -> None:
    pairs = random_pairs(0)
    first, again, other = (noise(pairs, seed=seed)[1].mlps for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_noise_has_the_spread_of_the_pairs() -> None:
    """Over many draws: mean the clean value, standard deviation `scale` times that over the pairs."""
    pairs = random_pairs(4, lengths=(3, 3, 3))
    draws = 2000
    clean, ablated = noise(pairs, scale=0.5, draws=draws)
    clean_rows = clean.mlps.unflatten(1, (3, draws))
    rows = ablated.mlps.unflatten(1, (3, draws))  # layer pair draw pos d_model
    spread = clean_rows[:, :, 0].double().var(1, correction=0).sqrt()[:, None]
    torch.testing.assert_close(rows.double().std(2), (0.5 * spread).expand_as(rows[:, :, 0]), rtol=0.15, atol=1e-6)
    error = (rows.double().mean(2) - clean_rows[:, :, 0].double()).abs() / (0.5 * spread)
    assert float(error.max()) < 5 / draws**0.5
    assert not torch.equal(rows[:, 0], rows[:, 1])


def test_what_does_not_vary_over_the_pairs_gets_no_noise() -> None:
    pairs = random_pairs(0, lengths=(4,))
    clean, ablated = noise(pairs * 3)
    torch.testing.assert_close(clean.heads, ablated.heads, rtol=0, atol=1e-5)


def test_noise_is_the_same_in_either_precision() -> None:
    one = experiment(small("gpt2"), random_pairs(0), ablation="noise")
    double = one.to("cpu", torch.float64)
    torch.testing.assert_close(one.ablated.heads.double(), double.ablated.heads, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "patch"}, ", ".join(ABLATIONS)),
        ({"name": "noise", "draws": 0}, "draws=0"),
        ({"name": "mean", "draws": 2}, "ablation.draws does not exist; ablation has name"),
        ({"name": "noise", "scale": -0.5}, "ablation.scale=-0.5 is not allowed: give 0 or more"),
        ({"name": "noise", "scale": float("inf")}, "ablation.scale=inf is not allowed"),
        ({"name": "noise", "scale": float("nan")}, "ablation.scale=nan is not allowed"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ABLATIONS.settings(settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
