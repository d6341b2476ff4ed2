"""The pair check: what is known of hand-made pairs by construction, and the oracle's runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import oracle
import pytest
import torch
from checkpoints import make_checkpoint
from experiments import Small, experiment, random_pairs, small
from pages import html_of
from rich.console import Console

from acdc.ablation import Noise
from acdc.errors import ConfigError, TaskError
from acdc.evaluation import preference
from acdc.evaluation.pair_check import PairCheck, check_pairs
from acdc.evaluation.pair_filter import FILTERS, apply_filter, limits_table
from acdc.evaluation.pair_record import Limits, PairRecord
from acdc.experiment import Experiment
from acdc.report.pairs import pairs_section, summary, view
from acdc.report.writer import show
from acdc.tasks.base import Pair, Task


def check(pairs: list[Pair], metric: str = "kl_div", kind: str = "gpt2", **options: object) -> PairCheck:
    return check_pairs(experiment(small(kind), pairs, metric), **options)  # type: ignore[arg-type]


def full_logits(model: Small, prompt: list[int], position: int = -1) -> list[float]:
    """The oracle's logits."""
    return oracle.evaluate(model.truth, torch.tensor([prompt]))[0][0, position].tolist()


def softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [x / math.fsum(exponentials) for x in exponentials]


def preferred(model: Small, clean: list[int], corrupted: list[int], outcome: str) -> Pair:
    """A pair whose answer and wrong answer are chosen so that the model has this outcome, and is right on the clean."""
    before, after = full_logits(model, clean), full_logits(model, corrupted)
    for right in range(10):
        for wrong in range(10):
            now, then = before[right] - before[wrong], after[right] - after[wrong]
            is_it = {"opposite": then < -0.1 * now, "weaker": 0.1 * now < then < 0.4 * now, "same": then > 0.6 * now}
            if now > 0.1 and is_it[outcome]:
                return Pair(clean, corrupted, [right], [wrong])
    raise AssertionError(f"no two tokens have the outcome {outcome}")


# Structure: what can be seen without the model.


def test_what_differs_and_where() -> None:
    pair = Pair([2, 3, 4, 5, 6], [2, 3, 7, 5, 8], labels={"name": 2, "rest": [3, 5]})
    (record,) = check([pair]).records
    assert [(s.position, s.label, s.clean, s.corrupted) for s in record.swaps] == [(2, "name", 4, 7), (4, "rest", 6, 8)]
    assert (record.n_tokens, record.first_difference, record.equal_share) == (5, 2, pytest.approx(3 / 5))


def test_places_are_counted_by_label_or_index() -> None:
    pairs = [
        Pair([1, 2, 3], [1, 4, 5], labels={"name": 1}),
        Pair([1, 2, 3], [1, 5, 3], labels={"name": 1}),
        Pair([1, 2, 3], [1, 2, 6]),
    ]
    assert check(pairs).places() == {"name": 2, "2": 2}


def test_duplicates() -> None:
    pairs = [
        Pair([1, 2, 3], [1, 4, 3]),
        Pair([5, 6], [7, 6]),
        Pair([1, 2, 3], [1, 5, 3]),  # the first one's clean prompt
        Pair([1, 2, 3], [1, 4, 3]),  # the first one again
        Pair([8, 9], [8, 9]),  # nothing differs
    ]
    found = check(pairs)
    assert [r.repeats for r in found.records] == [None, None, None, 0, None]
    assert [r.same_clean for r in found.records] == [None, None, 0, 0, None]
    assert [bool(r.swaps) for r in found.records] == [True, True, True, True, False]
    assert apply_filter(["unique"], found).indices == [0, 1, 2]
    problems = "\n".join(found.problems())
    assert "1 of 5 pairs have the same clean and corrupted prompt (first: pair 4)" in problems
    assert "1 of 5 pairs repeat an earlier one (first: pair 3)" in problems


@pytest.mark.parametrize(
    ("clean", "corrupted", "shift"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 0, 3, 4, 5, 6, 7, 9], 1),
        ([1, 2, 0, 3, 4, 5, 6, 7, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9], -1),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 1, 2, 3, 4, 5, 6, 7], 2),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 2, 3, 4, 5, 6, 7, 8, 1], 0),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], 0),
        ([1, 2, 3, 1, 2], [1, 3, 1, 2, 2], 0),  # a few words in another order
        ([1, 2, 3], [1, 2, 3], 0),
    ],
)
def test_a_shifted_prompt_is_noticed(clean: list[int], corrupted: list[int], shift: int) -> None:
    found = check([Pair(clean, corrupted)])
    assert found.records[0].shift == shift
    assert any("shifted" in line for line in found.problems()) is bool(shift)


def test_prompts_of_another_structure_are_named(tmp_path: Path) -> None:
    """Of three tokens the first pair shares two, the second one, the third none; token ids need to share none."""
    path = make_checkpoint("gpt2", tmp_path, tokenizer=True)

    def checked(pairs: list[Pair]) -> PairCheck:
        return check_pairs(Experiment.build(str(path), Task("words", pairs, "kl_div")))

    texts = [("the cat saw", "the dog saw"), ("the cat saw", "the dog heard"), ("the cat saw", "then dog heard")]
    found = checked([Pair(*prompts, where=f"file line {i}") for i, prompts in enumerate(texts, 1)])
    assert [record.where for record in found.unlike] == ["file line 2", "file line 3"]
    (problem,) = (line for line in found.problems() if "structure" in line)
    assert problem.startswith("in 2 of 3 pairs fewer than 50% of the tokens")
    assert problem.endswith("(first: file line 2)")
    rows = dict(summary(found))
    assert (
        rows["same length and structure"]
        == "1 of 3 pairs; 0% or more of the tokens stand at the same place in both prompts"
    )
    assert (
        rows["irregular pairs"]
        == "2 have the clean prompt of an earlier pair; 2 have a corrupted prompt of another structure"
    )
    ids = checked([Pair([5, 2, 7], [9, 3, 8])])
    assert not any("structure" in line for line in ids.problems())
    assert dict(summary(ids))["same length and structure"].startswith("all pairs")


@pytest.mark.parametrize(("kind", "before"), [("gpt2", True), ("bidirectional", False)])
def test_reading_before_the_first_difference(kind: str, before: bool) -> None:
    pairs = [Pair([1, 2, 3, 4], [1, 2, 5, 4], position=1), Pair([1, 2, 3, 4], [1, 2, 5, 4], position=[1, 3])]
    found = check(pairs, kind=kind)
    assert [r.reads_before for r in found.records] == [before, False]
    assert (found.records[0].kl < 1e-6) is before
    assert any("1 of 2 pairs the metric reads before" in line for line in found.problems()) is before


# What the model makes of the pairs, against the oracle.


def assert_run(
    run: preference.Preference, logits: list[list[float]], right: list[list[int]], wrong: list[list[int]]
) -> None:
    """A run's numbers from their definitions; one list a position."""
    rows = list(zip(logits, map(softmax, logits), right, wrong, strict=True))
    n = len(rows)
    differences = [sum(x[i] for i in r) / len(r) - sum(x[i] for i in w) / len(w) for x, _, r, w in rows]
    assert run.value == pytest.approx(sum(differences) / n, abs=1e-4)
    assert run.p_answers == pytest.approx(sum(p[i] for _, p, r, _ in rows for i in r) / n, abs=1e-5)
    assert run.p_wrong == pytest.approx(sum(p[i] for _, p, _, w in rows for i in w) / n, abs=1e-5)
    assert run.accuracy == pytest.approx(sum(max(x) in [x[i] for i in r] for x, _, r, _ in rows) / n)
    assert run.margin == pytest.approx(run.p_answers - run.p_wrong)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bidirectional"])
def test_both_runs_are_the_oracles(kind: str) -> None:
    """Several lengths, partners, positions and answers."""
    model = small(kind)
    pairs = random_pairs(3, lengths=(6, 4, 5), positions=2, partners=2, n_answers=2)
    records = check(pairs, "logit_diff", kind).records
    assert [(r.pair, r.partner) for r in records] == [(i, j) for i in range(3) for j in range(2)]
    for record in records:
        pair = pairs[record.pair]
        assert isinstance(pair.position, list)
        runs = [
            [full_logits(model, p, at) for at in pair.position] for p in (pair.clean, pair.corrupted[record.partner])
        ]
        assert_run(record.clean, runs[0], pair.answers, pair.wrong_answers)
        assert_run(record.corrupted, runs[1], pair.answers, pair.wrong_answers)
        p_q = [(softmax(a), softmax(b)) for a, b in zip(*runs, strict=True)]
        kl = sum(x * math.log(x / y) for p, q in p_q for x, y in zip(p, q, strict=True)) / 2
        l2 = sum((x - y) ** 2 / 10 for a, b in zip(*runs, strict=True) for x, y in zip(a, b, strict=True)) / 2
        assert (record.kl, record.l2) == (pytest.approx(kl, abs=1e-4), pytest.approx(l2, rel=1e-4))
        assert record.left == pytest.approx(record.corrupted.value / record.clean.value)


def test_draws_of_noise_are_no_records() -> None:
    pairs = random_pairs(3, lengths=(6, 6), positions=2, partners=2)
    once = check(pairs, "logit_diff").records
    noise = Noise(draws=3)
    records = check_pairs(experiment(small("gpt2"), pairs, "logit_diff", ablation=noise)).records
    assert [(r.pair, r.partner) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for ours, theirs in zip(records, once, strict=True):
        assert ours.swaps == theirs.swaps
        assert ours.clean.value == pytest.approx(theirs.clean.value, abs=1e-5)
        assert ours.corrupted.value == pytest.approx(theirs.corrupted.value, abs=1e-5)


def test_probability_is_the_measure_of_prob_diff() -> None:
    (pair,) = pairs = random_pairs(5, lengths=(4,), n_answers=3)
    found = check(pairs, "prob_diff")
    p = softmax(full_logits(small("gpt2"), pair.clean))  # type: ignore[arg-type]
    expected = sum(p[i] for i in pair.answers) - sum(p[i] for i in pair.wrong_answers)
    assert found.measure == "prob_diff"
    assert found.records[0].clean.value == pytest.approx(expected, abs=1e-5)


def test_without_answers_the_models_own_token_stands_for_them() -> None:
    model, prompts = small("gpt2"), [([1, 2, 3], [1, 7, 3]), ([4, 5, 6, 7], [4, 5, 6, 0]), ([2, 2, 2], [3, 3, 3])]
    found = check([Pair(*prompt) for prompt in prompts])
    assert not found.has_answers
    for record, (clean, corrupted) in zip(found.records, prompts, strict=True):
        for run, prompt in ((record.clean, clean), (record.corrupted, corrupted)):
            own = max(range(10), key=lambda i: full_logits(model, clean)[i])
            logits = full_logits(model, prompt)
            other = max((i for i in range(10) if i != own), key=lambda i: logits[i])
            assert_run(run, [logits], [[own]], [[other]])
        assert record.clean.accuracy == 1
        assert (record.outcome == "opposite") is (record.corrupted.accuracy == 0)
    with pytest.raises(ConfigError, match="needs answers"):
        apply_filter(["correct"], found)
    assert "correct" not in dict(limits_table(found))


def test_without_wrong_answers_the_strongest_other_token_is() -> None:
    model, clean = small("gpt2"), [1, 2, 3]
    logits = full_logits(model, clean)
    best, second = sorted(range(10), key=lambda i: -logits[i])[:2]
    found = check([Pair(clean, [1, 7, 3], answers=[second])], "nll")
    assert_run(found.records[0].clean, [logits], [[second]], [[best]])
    assert found.accuracy == 0


def test_a_model_with_one_output_prefers_nothing() -> None:
    one = Experiment.build(model="tracr_proportion", task="tracr_proportion", size=8)
    found = check_pairs(one)
    assert {r.outcome for r in found.records} == {"none"}
    assert all(r.l2 > 0 for r in found.records)
    assert not found.problems()
    assert set(name.partition(":")[0] for name, _ in limits_table(found)) == {"minimal", "unique"}
    with pytest.raises(ConfigError, match="one output"):
        apply_filter(["confident"], found)
    assert "squared difference" in html_of(pairs_section(found))


@pytest.fixture(scope="module")
def mixed() -> PairCheck:
    """Pairs with known outcomes: opposite, opposite, weaker, same; then one that the model gets wrong."""
    model = small("gpt2")
    right = [
        preferred(model, [1, 2, 3, 4], [1, 2, 3, 9], "opposite"),
        preferred(model, [5, 6, 7, 8], [5, 0, 7, 1], "opposite"),
        preferred(model, [2, 4, 6, 8], [2, 4, 6, 3], "weaker"),
        preferred(model, [9, 8, 7, 6], [1, 8, 7, 6], "same"),
    ]
    turned = preferred(model, [3, 3, 3, 1], [3, 5, 5, 1], "same")
    return check([*right, Pair(turned.clean, turned.corrupted, turned.wrong_answers, turned.answers)], "logit_diff")


def test_outcomes(mixed: PairCheck) -> None:
    assert [r.outcome for r in mixed.records] == ["opposite", "opposite", "weaker", "same", "same"]
    assert mixed.outcomes == {"opposite": 2, "weaker": 1, "same": 2}
    assert [r.prefers_answer for r in mixed.records] == [True, True, True, True, False]
    assert mixed.accuracy == pytest.approx(0.8)


# Filters.


@pytest.mark.parametrize(
    ("names", "kept", "dropped"),
    [
        (["correct"], [0, 1, 2, 3], [1]),
        (["flips"], [0, 1], [3]),
        (["weakened"], [0, 1, 2], [2]),
        (["minimal"], [0, 2, 3], [2]),
        (["minimal:2"], [0, 1, 2, 3, 4], [0]),
        (["correct", "weakened", "minimal"], [0, 2], [1, 1, 1]),
        (["minimal", "flips", "correct"], [0], [2, 2, 0]),
        ([], [0, 1, 2, 3, 4], []),
    ],
)
def test_filters_say_what_falls_out(mixed: PairCheck, names: list[str], kept: list[int], dropped: list[int]) -> None:
    filtered = apply_filter(names, mixed)
    assert filtered.indices == kept
    assert filtered.dropped == dict(zip(names, dropped, strict=True))
    assert f"keeps {len(kept)} of 5 pairs" in filtered.note()


def test_confident_has_a_limit(mixed: PairCheck) -> None:
    margins = sorted(r.clean.margin for r in mixed.records)
    assert margins[2] < margins[3]
    limit = (margins[2] + margins[3]) / 2
    assert len(apply_filter([f"confident:{limit}"], mixed).indices) == 2
    assert len(apply_filter(["confident:-1"], mixed).indices) == 5


def test_a_pair_passes_with_all_its_partners() -> None:
    pairs = [Pair([1, 2, 3], [[1, 2, 4], [1, 2, 5]]), Pair([1, 2, 3], [[1, 2, 4], [1, 6, 5]])]
    found = check(pairs)
    assert apply_filter(["minimal"], found).indices == [0]
    assert limits_table(found)[-3:] == [("minimal:1", 1), ("minimal:2", 2), ("unique", 2)]


def test_the_table_of_limits_is_what_each_filter_leaves(mixed: PairCheck) -> None:
    rows = limits_table(mixed)
    assert [name for name, _ in rows] == [
        *("correct", "flips", "weakened:0.5", "confident:0.05", "confident:0.1", "confident:0.25", "confident:0.5"),
        *("minimal:1", "minimal:2", "unique"),
    ]
    for name, left in rows:
        if left:
            assert len(apply_filter([name], mixed).indices) == left
        else:
            with pytest.raises(TaskError, match=r"leaves none of the 5 pairs"):
                apply_filter([name], mixed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("right", ", ".join(FILTERS)),
        ("minimal:few", "minimal:3"),
        ("confident:nan", "confident:0.25"),
        ("correct:1", "takes no number"),
    ],
)
def test_wrong_filters_are_refused_in_one_line(mixed: PairCheck, name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_filter([name], mixed)
    assert f"task.filter={name}" in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_filters_that_leave_nothing_say_where_the_pairs_went(mixed: PairCheck) -> None:
    with pytest.raises(TaskError) as caught:
        apply_filter(["flips", "minimal:0"], mixed)
    assert "flips 3, minimal:0 2" in str(caught.value)
    assert "\n" not in str(caught.value)


# Warnings.


def test_a_model_that_does_not_know_the_task(mixed: PairCheck) -> None:
    assert not mixed.problems()  # 80% right, 40% unchanged
    model = small("gpt2")
    good = preferred(model, [1, 2, 3, 4], [1, 2, 3, 9], "opposite")
    swapped = Pair(good.clean, [5, 2, 3, 4], good.wrong_answers, good.answers)
    (line,) = [line for line in check([good, swapped], "logit_diff").problems() if "prefers" in line]
    assert "only 50% of the clean prompts" in line
    found = check([good, swapped], "logit_diff", limits=Limits(accuracy=0.5))
    assert not any("prefers" in line for line in found.problems())


def test_a_corruption_that_takes_nothing_away() -> None:
    model = small("gpt2")
    same = [preferred(model, [9, 8, 7, 6], [1, 8, 7, 6], "same"), preferred(model, [3, 3, 1], [3, 5, 1], "same")]
    other = preferred(model, [1, 2, 3, 4], [1, 2, 3, 9], "opposite")
    assert any(
        "2 of 3 corrupted prompts leave more than 50%" in x for x in check([*same, other], "logit_diff").problems()
    )
    assert not check([same[0], other], "logit_diff").problems()


@pytest.mark.parametrize(("ablation", "said"), [("noise", "clean"), ("mean", "corrupted"), ("corrupted", "")])
def test_nothing_to_average_over(ablation: str, said: str) -> None:
    pairs = [Pair([1, 2, 3], [1, 2, 4], [5], [6])]
    lines = check_pairs(experiment(small("gpt2"), pairs, ablation=ablation)).problems()
    assert any(f"all {said} prompts are the same" in line for line in lines) is bool(said)


# Cost.


def test_one_run_on_the_corrupted_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    one = experiment(small("gpt2"), random_pairs(0, lengths=(5,) * 20))
    expected = check_pairs(one).records
    rows: list[int] = []
    run = preference.run
    monkeypatch.setattr(
        preference, "run", lambda model, tokens, lengths: rows.append(len(tokens)) or run(model, tokens, lengths)
    )
    assert check_pairs(one).records == expected
    assert rows == [20]
    monkeypatch.setattr(preference, "BLOCK", 10 * 7)  # logits of 7 pairs
    for ours, theirs in zip(check_pairs(one).records, expected, strict=True):
        assert ours.corrupted.value == pytest.approx(theirs.corrupted.value, abs=1e-5)
        assert ours.kl == pytest.approx(theirs.kl, abs=1e-5)
    assert rows == [20, 7, 7, 6]


# What people see.


def test_rows_hold_no_nan() -> None:
    rows = check_pairs(Experiment.build(model="tracr_proportion", task="tracr_proportion", size=4)).as_rows()
    assert all(row["logit_diff_clean"] is None for row in rows)
    json.dumps(rows, allow_nan=False)


def shown(found: PairCheck) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for item in view(found).console:
        show(console, item)
    return console.export_text()


def test_the_console_table(mixed: PairCheck) -> None:
    text = shown(mixed)
    assert "prefers the opposite: 2; at most 50% is left: 1; more than 50% is left: 2" in text
    assert "80% of the pairs" in text
    assert "1 in 3, 2 in 2" in text
    assert any("task.filter=[minimal:2]" in line and "leaves 5 of 5" in line for line in text.splitlines())


def test_the_worst_pairs_come_first(mixed: PairCheck) -> None:
    html = html_of(pairs_section(mixed))
    worst: list[PairRecord] = sorted(mixed.records, key=lambda r: r.clean.value)
    places = [html.index(f">{record.where}<") for record in worst]
    assert worst[0].where == "pair 4"
    assert places == sorted(places)
