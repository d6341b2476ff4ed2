"""Do the pairs suit the model? An intervention says no more than its pairs do."""

from __future__ import annotations

from collections import Counter

import torch

from acdc.experiment import Experiment


def check_pairs(experiment: Experiment) -> list[str]:
    """What speaks against the pairs, one line each; empty if nothing does.

    Looks for pairs whose two prompts are the same, for pairs that occur twice, and for a model that does not prefer the
    answers to the wrong answers on the clean prompts, or prefers them as much on the corrupted ones.
    """
    problems = []
    pairs = experiment.pairs
    same = [pair.where for pair in pairs if pair.clean in pair.corrupted]
    if same:
        problems.append(f"{_count(same, pairs)} have the same clean and corrupted prompt (first: {same[0]})")
    seen = Counter((pair.clean, pair.corrupted) for pair in pairs)
    if twice := sum(n - 1 for n in seen.values()):
        problems.append(f"{twice} of {len(pairs)} pairs repeat another")
    readouts = experiment.readouts
    if bool((readouts.answers >= 0).any(-1).all() & (readouts.wrong_answers >= 0).any(-1).all()):
        from acdc.metrics import make_metric

        preference = make_metric("logit_diff", readouts, experiment.clean_logits)
        assert preference.columns is not None
        with torch.no_grad():
            clean = preference.values(experiment.clean_logits[:, preference.columns])
        right = (clean > 0).double().mean().item()
        if right < 0.8:
            problems.append(
                f"the model prefers the answer to the wrong answer in only {right:.0%} of the clean prompts, so a circuit"
                " for the answer may not exist"
            )
    return problems


def _count(some: list[str], pairs: tuple) -> str:  # type: ignore[type-arg]
    return f"{len(some)} of {len(pairs)} pairs"
