"""Direct shares against the bridge: they sum to its logit difference, and each is what taking its write away does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from experiments import KINDS, Rows, Small, experiment, naive_value, random_pairs, rows_of, small
from torch import Tensor

from acdc import patch
from acdc.errors import AcdcError
from acdc.patching.direct import WAYS, Shares


def logit_differences(model: Small, tokens: Tensor, rows: Rows) -> list[float]:
    """Of each row; prompts are run one by one, without padding."""
    found = []
    for row, length, at, right, wrong in zip(
        tokens, rows.lengths, rows.positions, rows.answers, rows.wrong, strict=True
    ):
        logits = model.bridge(row[None, :length])[0, at].tolist()
        found.append(naive_value("logit_diff", logits, logits, right, wrong))
    return found


@pytest.mark.parametrize("family", KINDS)
def test_shares_sum_to_the_logit_difference(family: str) -> None:
    model, pairs = small(family, 3), random_pairs(7, (3, 5, 4), positions=2, partners=2, n_answers=2)
    ways = [way for way in WAYS if way != "neuron" or model.parts.layers[0].mlp is not None]
    found = patch(experiment(model, pairs, "logit_diff"), "direct", by=ways)
    rows = rows_of(pairs)
    for run in ("clean", "corrupted"):
        by_row = torch.tensor(logit_differences(model, getattr(rows, run), rows)).reshape(3, 4)
        assert getattr(found, run).tolist() == pytest.approx(by_row.mean(-1).tolist(), abs=1e-4)
        for one in found.shares:
            sums = getattr(one, run).sum(0).tolist()
            assert sums == pytest.approx(by_row.mean(-1).tolist(), abs=1e-4), (one.by, run)
    assert [one.by for one in found.shares] == ways
    last = [row["cumulative"] for row in found.rows() if row["part"] == "final_bias"]
    assert last == pytest.approx([float(found.clean.mean())] * len(ways), abs=1e-4)


@pytest.mark.parametrize(("family", "centred"), [("gpt2", True), ("llama", False), ("gpt_neox", True)])
def test_a_share_is_what_the_bridge_writes_times_the_direction(family: str, centred: bool) -> None:
    """With the final norm's scale, centring and weight worked out from the last stream, one pair."""
    model, (pair,) = small(family, 4), random_pairs(5, (5,))
    cache = model.bridge.run_with_cache(torch.tensor([pair.clean]))[1]
    last = len(model.parts.layers) - 1
    stream = cache[f"blocks.{last}.hook_resid_post"][0, -1]
    norm, W_U = model.parts.final_norm, model.parts.W_U
    assert norm.weight is not None
    centre = stream.mean() if centred else 0
    scale = 1 / math.sqrt(float((stream - centre).square().mean()) + norm.eps)
    towards = W_U[:, pair.answers].mean(-1) - W_U[:, pair.wrong_answers].mean(-1)

    def share(written: Tensor) -> float:
        written = written - written.mean() if centred else written
        return float(scale * (written * norm.weight) @ towards)

    found = patch(experiment(model, [pair], "logit_diff"), "direct", by=["head", "neuron"])
    by_part = {row["part"]: row["clean"] for row in found.rows()}
    assert by_part["embed"] == pytest.approx(share(cache["blocks.0.hook_resid_pre"][0, -1]), abs=1e-5)
    for i, layer in enumerate(model.parts.layers):
        for head in range(layer.n_heads):
            written = cache[f"blocks.{i}.attn.hook_z"][0, -1, head] @ layer.W_O[head]
            assert by_part[f"a{i}.h{head}"] == pytest.approx(share(written), abs=1e-5)
        assert by_part[f"m{i}"] == pytest.approx(share(cache[f"blocks.{i}.hook_mlp_out"][0, -1]), abs=1e-5)
        assert layer.mlp is not None
        for neuron, value in enumerate(cache[f"blocks.{i}.mlp.hook_post"][0, -1]):
            assert by_part[f"m{i}.n{neuron}"] == pytest.approx(share(value * layer.mlp.W_out[neuron]), abs=1e-5)


def test_layers_are_the_sums_of_their_parts() -> None:
    found = patch(experiment(small("gpt2", 3), random_pairs(7), "logit_diff"), "direct", by=list(WAYS))
    layers, *others = found.shares
    for other in others:
        for i, part in enumerate(layers.parts):
            if part.kind == "layer":
                mine = [j for j, p in enumerate(other.parts) if p.layer == part.layer]
                torch.testing.assert_close(other.clean[mine].sum(0), layers.clean[i], atol=1e-5, rtol=0)
    assert shares(others[2], "neuron") == 32
    assert shares(others[2], "head") == 4


def shares(one: Shares, kind: str) -> int:
    return sum(part.kind == kind for part in one.parts)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "token"}, "patch.by=token is not known: choose one of layer, sublayer, head, neuron"),
        ({"by": []}, "patch.by is empty: choose from layer"),
        ({"site": "q"}, "patch=direct has no option site: choose from name, by"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(AcdcError) as error:
        patch(experiment(small("gpt2", 3), random_pairs(7), "logit_diff"), "direct", **options)
    assert str(error.value).startswith(said)


def test_what_has_no_shares_is_refused() -> None:
    with pytest.raises(AcdcError, match=r"metric=kl_div is not a sum .* give metric=logit_diff"):
        patch(experiment(small("gpt2", 3), random_pairs(7)), "direct")
    with pytest.raises(AcdcError, match=r"patch\.by=neuron: attention_only has no MLPs"):
        patch(experiment(small("attention_only", 1), random_pairs(7), "logit_diff"), "direct", by="neuron")
    with pytest.raises(AcdcError, match="ablation=zero does not fit job=patch"):
        patch(experiment(small("gpt2", 3), random_pairs(7), "logit_diff", "zero"), "direct")
