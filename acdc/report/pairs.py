"""The pair check: tables for the console, sections of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

from acdc.evaluation.pair_check import PairCheck
from acdc.evaluation.pair_filter import FILTERS, limits_table
from acdc.evaluation.pair_record import PairRecord
from acdc.report.numbers import number
from acdc.report.view import Block, Bullets, Cell, Marked, Section, Table, View

WORST = 10  # pairs shown in full
MOST_PLACES = 12
MOST_SWAPS = 6
MOST_ON_CONSOLE = 40
MOST_ON_PAGE = 500

OUTCOMES = {
    "opposite": "prefers the opposite",
    "weaker": "at most {left:.0%} is left",
    "same": "more than {left:.0%} is left",
}


def summary(check: PairCheck) -> list[tuple[str, str]]:
    """Summarise all pairs, as (what, value)."""
    records, n = check.records, len(check.pairs)
    lengths = [record.n_tokens for record in records]
    differing = Counter(len(record.swaps) for record in records)
    places = check.places().most_common()
    rows = [
        ("pairs", f"{n}" + (f" with {len(records)} corrupted prompts" if len(records) > n else "")),
        ("tokens", _range(lengths)),
        ("tokens that differ", ", ".join(f"{k} in {count}" for k, count in sorted(differing.items()))),
        ("same length and structure", _structure(check)),
        ("first difference", _range([r.first_difference for r in records if r.first_difference is not None])),
        (
            "where they differ (pairs)",
            ", ".join(f"{place} ({count})" for place, count in places[:MOST_PLACES])
            + f" and {len(places) - MOST_PLACES} more places" * (len(places) > MOST_PLACES),
        ),
        ("irregular pairs", _irregular(check)),
        ("frequency of swapped tokens", _frequency(check)),
    ]
    if check.has_choice:
        rows += _preference(check)
    changes = [r.kl if check.has_choice else r.l2 for r in records]
    rows.append(
        (
            "KL(clean ‖ corrupted)" if check.has_choice else "mean squared difference of the outputs",
            f"median {median(changes):.3g}, {min(changes):.3g} to {max(changes):.3g}",
        )
    )
    return rows


def _preference(check: PairCheck) -> list[tuple[str, str]]:
    records = check.records
    measure = {"logit_diff": "logit difference", "prob_diff": "difference of probability"}[check.measure]
    if check.has_answers:
        rows = [
            ("model prefers the answer, clean", f"{check.accuracy:.0%} of the pairs"),
            ("top token is an answer, clean", f"{_mean([r.clean.accuracy for r in records]):.0%}"),
        ]
    else:
        rows = [
            ("the answers", "not given in every pair; the model's own top token on the clean prompt stands for them")
        ]
    for side in ("clean", "corrupted"):
        runs = [getattr(record, side) for record in records]
        rows.append(
            (
                f"{measure}, {side}",
                f"mean {_mean([r.value for r in runs]):.3g}, {min(r.value for r in runs):.3g} to"
                f" {max(r.value for r in runs):.3g}",
            )
        )
        rows.append(
            (
                f"P(answer), P(wrong answer), {side}",
                f"{_mean([r.p_answers for r in runs]):.3g}, {_mean([r.p_wrong for r in runs]):.3g}",
            )
        )
    outcomes = check.outcomes
    shown = (f"{text.format(left=check.limits.left)}: {outcomes[name]}" for name, text in OUTCOMES.items())
    return [*rows, ("preference in the corrupted run", "; ".join(shown))]


def view(check: PairCheck) -> View:
    """Say what `job=check` shows."""
    n, problems = len(check.pairs), len(check.problems())
    verdict = f"{problems} things speak against them." if problems else "nothing speaks against them."
    return View(
        f"Pairs · {check.task} · {check.model}",
        f"{n} pairs of the task {check.task}, as {check.model} sees them: {verdict}",
        [pairs_section(check), _each_pair_section(check)],
        [_each_pair_table(check), _console_table(check)],
    )


def short_table(check: PairCheck) -> Table:
    """Make a table of the summary, with how many pairs each filter would leave in its last row."""
    filters = ", ".join(f"{name} {left}" for name, left in limits_table(check))
    return _summary_table(check, [("task.filter would leave", f"of {len(check.pairs)}: {filters}")])


def _console_table(check: PairCheck) -> Table:
    """Make a table of the summary, and below it how many pairs each filter would leave."""
    n = len(check.pairs)
    filters = [
        (f"task.filter=[{name}]", f"leaves {left} of {n}, drops {n - left}") for name, left in limits_table(check)
    ]
    return _summary_table(check, [("", ""), *filters])


def _summary_table(check: PairCheck, more: Sequence[tuple[str, str]]) -> Table:
    return Table(f"The pairs of {check.task}, for {check.model}", ["", ""], [*summary(check), *more], left=2, wide=1)


def _each_pair_table(check: PairCheck) -> Table:
    """Make a row a pair and partner: what is swapped where, and what the model makes of it."""
    ranked = " (ranks: 1 is the most frequent token)" * (check.frequencies is not None)
    rows = [_cells(check, record) for record in check.records[:MOST_ON_CONSOLE]]
    rest = len(check.records) - MOST_ON_CONSOLE
    header = _header(check)
    caption = f"{rest} more in pairs.csv" if rest > 0 else ""
    return Table(f"Each pair, clean → corrupted{ranked}", header, rows, left=len(header), caption=caption, wide=1)


def _each_pair_section(check: PairCheck) -> Section:
    """Make the same for a page."""
    rows, header = [_cells(check, record) for record in check.records[:MOST_ON_PAGE]], _header(check)
    ranks = "In brackets, how frequent the tokens are: 1 is the most frequent." * bool(check.frequencies)
    rest = len(check.records) - MOST_ON_PAGE
    more = f"{rest:,} more are in pairs.csv." if rest > 0 else ""
    return Section("Each pair", [ranks, Table("", header, rows, left=len(header)), more])


def _header(check: PairCheck) -> list[str]:
    unit = {"logit_diff": "logit diff", "prob_diff": "prob diff"}[check.measure]
    return [
        "pair",
        "what differs, and where",
        *([unit, "P(answer)"] if check.has_choice else ["squared diff"]),
        "outcome",
    ]


def _cells(check: PairCheck, record: PairRecord) -> list[str]:
    def written(token: int) -> str:
        text = check.tokenizer.decode([token])
        return text.strip() or repr(text)

    swaps = [
        f"{s.position}: {written(s.clean)} → {written(s.corrupted)}"
        + (f" ({s.clean_rank or '–'}, {s.corrupted_rank or '–'})" if check.frequencies is not None else "")
        for s in record.swaps
    ]
    if len(swaps) > MOST_SWAPS:
        swaps = [*swaps[:MOST_SWAPS], f"{len(swaps) - MOST_SWAPS} more"]
    values = [f"{record.l2:.3g}"]
    if check.has_choice:
        before, after = record.clean, record.corrupted
        values = [f"{before.value:.3g} → {after.value:.3g}", f"{before.p_answers:.2g} → {after.p_answers:.2g}"]
    remarks = [text for text, is_so in _REMARKS.items() if is_so(record)]
    return [
        record.where.rpartition("/")[2] + f", {record.partner}" * (len(check.records_of_pairs[record.pair]) > 1),
        ", ".join(swaps) or "nothing",
        *values,
        ", ".join([*([record.outcome] if check.has_choice else []), *remarks]),
    ]


_REMARKS: dict[str, Callable[[PairRecord], bool]] = {
    "repeats a pair": lambda record: record.repeats is not None,
    "same prompt": lambda record: not record.swaps,
    "shifted": lambda record: bool(record.shift),
    "read too early": lambda record: record.reads_before,
}


def _structure(check: PairCheck) -> str:
    """Say how many pairs have one structure: no moved stretch, enough common tokens.

    Lengths are equal, or the pairs would have been refused.
    """
    others = len({record.pair for record in (*check.unlike, *(r for r in check.records if r.shift))})
    equal = min(record.equal_share for record in check.records)
    same = "all" if not others else f"{len(check.pairs) - others} of {len(check.pairs)}"
    return f"{same} pairs; {equal:.0%} or more of the tokens stand at the same place in both prompts"


def pairs_section(check: PairCheck) -> Section:
    """Show the summary, the filters, and the pairs the model is least sure of."""
    n = len(check.pairs)
    filters = [
        [name, FILTERS[name.partition(":")[0]][0], str(left), str(n - left)] for name, left in limits_table(check)
    ]
    problems = [Bullets(check.problems(), warn=True)] if check.problems() else []
    blocks: list[Block] = [
        *problems,
        Table("", ["", ""], summary(check), left=2),
        "What each filter would leave:",
        Table("", ["task.filter", "keeps a pair if", "left", "fall out"], filters, left=2, code=[0]),
    ]
    return Section("The pairs", [*blocks, *_worst(check)])


def _worst(check: PairCheck) -> list[Block]:
    """Show the pairs with the least preference for the answer; without any preference, those that change least."""
    if check.has_choice:
        records = sorted(check.records, key=lambda r: r.clean.value)
        title, unit = "The pairs the model is least sure of:", check.measure
    else:
        records = sorted(check.records, key=lambda r: r.l2)
        title, unit = "The pairs whose two runs differ least:", "mean squared difference"
    rows: list[list[Cell]] = []
    for record in records[:WORST]:
        values = [record.clean.value, record.corrupted.value] if check.has_choice else [record.l2]
        prompts = Marked([line for side in ("clean", "corrupted") for line in _marked(check, record, side)])
        rows.append([record.where, prompts, *map(number, values), record.outcome])
    header = ["", "clean and corrupted prompt", f"{unit}, clean", "corrupted", "outcome"]
    header = header if check.has_choice else [*header[:2], unit, "outcome"]
    return [title, Table("", header, rows, left=2, words=[len(header) - 1])]


def _marked(check: PairCheck, record: PairRecord, side: str) -> list[list[tuple[str, bool]]]:
    """Return the lines of a prompt in pieces; the tokens that differ are marked."""
    pair = check.pairs[record.pair]
    ids = pair.clean if side == "clean" else pair.corrupted[record.partner]
    different = {swap.position for swap in record.swaps}
    lines: list[list[tuple[str, bool]]] = [[]]
    before = ""
    for i in range(len(ids)):
        text = check.tokenizer.decode(ids[: i + 1])
        # What a token adds to the text; a decoder that rewrites what came before shows the token by itself.
        added = text[len(before) :] if text.startswith(before) else check.tokenizer.decode([ids[i]])
        before = text
        piece = added.lstrip(" ")
        lines[-1].append((added[: len(added) - len(piece)], False))
        for j, part in enumerate(piece.replace("\n", "↵\n").split("\n")):
            if j:
                lines.append([])
            lines[-1].append((part, i in different))
    return lines


def _frequency(check: PairCheck) -> str:
    if check.frequencies is None:
        return "not known: the tokenizer's order does not tell it (give task.frequencies=FILE)"
    clean = [s.clean_rank for s in check.swaps if s.clean_rank]
    corrupted = [s.corrupted_rank for s in check.swaps if s.corrupted_rank]
    factor = check.rank_factor
    if factor is None:
        return f"no rank known in {check.frequencies.source}"
    return (
        f"median rank {median(clean):.0f} clean, {median(corrupted):.0f} corrupted, ratio {factor:.2g} in the geometric"
        f" mean ({check.frequencies.source})"
    )


def _irregular(check: PairCheck) -> str:
    """Say how many pairs repeat, share a prompt, are shifted or of another structure."""
    records = check.records
    kinds = {
        "repeat an earlier pair": [r.pair for r in records if r.repeats is not None],
        "have the clean prompt of an earlier pair": [r.pair for r in records if r.same_clean is not None],
        "have the same clean and corrupted prompt": [r.pair for r in records if not r.swaps],
        "have a corrupted prompt that is shifted": [r.pair for r in records if r.shift],
        "have a corrupted prompt of another structure": [r.pair for r in check.unlike],
        "are read before their first difference": [r.pair for r in records if r.reads_before],
    }
    return "; ".join(f"{len(set(pairs))} {kind}" for kind, pairs in kinds.items() if pairs) or "none"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _range(values: Sequence[int]) -> str:
    if not values:
        return "none"
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
