"""Who feeds a node, level by level backward, by edges removed."""

from __future__ import annotations

import pytest
from experiments import experiment, random_pairs, small
from test_path import ports, removed

from acdc import Experiment
from acdc.graph import Edge
from acdc.patching import patch


def test_levels_are_edges_removed_and_the_strongest_followed() -> None:
    pairs = random_pairs(7)
    one = experiment(small("gpt2", 3, n_layers=3), pairs, "logit_diff")
    limit, width = 0.05, 2
    found = patch(one, "path", from_="logits", depth=3, width=width, limit=limit)
    clean, corrupted = found.clean, found.corrupted
    receivers, asked = ["logits"], {"logits"}
    for level, ours in enumerate(found.maps, 1):
        size: dict[str, float] = {}
        expected = {}
        for receiver in receivers:
            for sender in one.graph.senders_of(receiver):
                value = removed(one, one, {Edge(sender, receiver)}, "noise")
                effect = 1 - (value - corrupted) / (clean - corrupted)
                expected[sender, receiver] = effect
                size[sender] = max(size.get(sender, 0), abs(effect))
        effects = {(p.senders.name, p.receivers.name): effect for p, effect in ours.effects().items()}
        assert effects == pytest.approx(expected, abs=1e-4)
        strong = sorted(
            (s for s in size if size[s] >= limit and s != "input" and s not in asked), key=lambda s: -size[s]
        )
        nodes = strong[:width] if level < 3 else []
        assert (ours.level, list(ours.followed)) == (level, nodes)
        asked |= set(nodes)
        receivers = [port for node in nodes for port in ports([node])]
    assert len(found.maps) == 3
    assert {row["level"] for row in found.rows()} == {1, 2, 3}


def test_levels_end_where_nothing_is_strong_and_keep_to_their_senders() -> None:
    one = experiment(small("gpt2", 3, n_layers=3), random_pairs(7), "logit_diff")
    (only,) = patch(one, "path", from_="a1.h0<q>", limit=1e9).maps
    assert [str(p) for p in only.paths] == [f"{s} → a1.h0<q>" for s in one.graph.senders_of("a1.h0<q>")]
    some = patch(one, "path", from_="logits", senders=["m0", "m1"], limit=0.0)
    assert [m.followed for m in some.maps] == [("m1", "m0"), ()]  # each is asked once
    assert [str(p) for p in some.maps[1].paths] == ["m0 → m1"]


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_levels_find_the_circuit_of_a_compiled_program(direction: str) -> None:
    """Reverse: the logits are what a3.h0 writes, which are the tokens that it moves; the rest is the same anyway."""
    found = patch(Experiment.build(task="tracr_reverse", size=8), "path", from_="logits", direction=direction)
    strong = {
        (path.senders.name, path.receivers.name): effect
        for one in found.maps
        for path, effect in one.effects().items()
        if abs(effect) > 1e-4
    }
    ends = {("a3.h0", "logits"): 1, ("input.tok", "a3.h0<v>"): 1}
    assert strong == pytest.approx(ends, abs=1e-4)
    assert [one.followed for one in found.maps] == [("a3.h0",), ()]
