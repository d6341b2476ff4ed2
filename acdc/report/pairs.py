"""The pair check for people: a table on the console, a section of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from statistics import median

from rich.table import Table
from rich.text import Text

from acdc.evaluation.pair_check import PairCheck, PairRecord
from acdc.evaluation.pair_filter import FILTERS, limits_table
from acdc.report.html import Section, table
from acdc.report.numbers import number

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
    """What there is to say about all pairs, as (what, value)."""
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


def short_table(check: PairCheck) -> Table:
    """The summary, with how many pairs each filter would leave in its last row."""
    shown = _summary_table(check)
    filters = ", ".join(f"{name} {left}" for name, left in limits_table(check))
    shown.add_row(Text("task.filter would leave"), Text(f"of {len(check.pairs)}: {filters}"))
    return shown


def console_table(check: PairCheck) -> Table:
    """The summary, and below it how many pairs each filter would leave."""
    shown = _summary_table(check)
    shown.add_row()
    n = len(check.pairs)
    for name, left in limits_table(check):
        shown.add_row(Text(f"task.filter=[{name}]"), Text(f"leaves {left} of {n}, drops {n - left}"))
    return shown


def each_pair_table(check: PairCheck) -> Table:
    """A row a pair and partner: what is swapped where, and what the model makes of it."""
    ranked = " (ranks: 1 is the most frequent token)" * (check.frequencies is not None)
    shown = Table(title=f"Each pair, clean → corrupted{ranked}", title_justify="left", box=None, pad_edge=False)
    for name in _header(check):
        is_long = name == "what differs, and where"
        shown.add_column(Text(name), ratio=1 if is_long else None, no_wrap=not is_long, overflow="fold")
    for record in check.records[:MOST_ON_CONSOLE]:
        shown.add_row(*map(Text, _cells(check, record)))
    if (rest := len(check.records) - MOST_ON_CONSOLE) > 0:
        shown.caption = f"{rest} more in pairs.csv"
    return shown


def each_pair_section(check: PairCheck) -> Section:
    """The same as a section of a page."""
    rows = [[escape(cell) for cell in _cells(check, record)] for record in check.records[:MOST_ON_PAGE]]
    ranks = "<p>In brackets, how frequent the tokens are: 1 is the most frequent.</p>" * bool(check.frequencies)
    html = ranks + table(_header(check), rows)
    if (rest := len(check.records) - MOST_ON_PAGE) > 0:
        html += f"<p>{rest:,} more are in pairs.csv.</p>"
    return Section("Each pair", html)


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
        record.where.rpartition("/")[2] + f", {record.partner}" * (len(check.by_pair[record.pair]) > 1),
        ", ".join(swaps) or "nothing",
        *values,
        ", ".join([*([record.outcome] if check.has_choice else []), *remarks]),
    ]


_REMARKS = {
    "repeats a pair": lambda record: record.repeats is not None,
    "same prompt": lambda record: not record.swaps,
    "shifted": lambda record: bool(record.shift),
    "read too early": lambda record: record.reads_before,
}


def _structure(check: PairCheck) -> str:
    """Lengths are equal, or the pairs would have been refused; a moved stretch or hardly a common token is another
    structure."""
    others = len({record.pair for record in (*check.unlike, *(r for r in check.records if r.shift))})
    equal = min(record.equal_share for record in check.records)
    same = "all" if not others else f"{len(check.pairs) - others} of {len(check.pairs)}"
    return f"{same} pairs; {equal:.0%} or more of the tokens stand at the same place in both prompts"


def _summary_table(check: PairCheck) -> Table:
    title = f"The pairs of {check.task}, for {check.model}"
    shown = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in summary(check):
        shown.add_row(Text(name), Text(value))
    return shown


def pairs_section(check: PairCheck) -> Section:
    """The summary, the filters, and the pairs the model is least sure of."""
    n = len(check.pairs)
    problems = "".join(f"<li>{escape(line)}</li>" for line in check.problems())
    filters = [
        [f"<code>{escape(name)}</code>", escape(FILTERS[name.partition(":")[0]][0]), str(left), str(n - left)]
        for name, left in limits_table(check)
    ]
    html = (
        (f'<ul class="notes">{problems}</ul>' if problems else "")
        + table(["", ""], [[escape(name), escape(value)] for name, value in summary(check)])
        + "<h3>What each filter would leave</h3>"
        + table(["task.filter", "keeps a pair if", "left", "fall out"], filters, numeric=[2, 3])
        + _worst(check)
    )
    return Section("The pairs", html)


def _worst(check: PairCheck) -> str:
    """The pairs with the least preference for the answer; without any preference, those that change least."""
    if check.has_choice:
        records = sorted(check.records, key=lambda r: r.clean.value)
        title, unit = "The pairs the model is least sure of", check.measure
    else:
        records = sorted(check.records, key=lambda r: r.l2)
        title, unit = "The pairs whose two runs differ least", "mean squared difference"
    rows = []
    for record in records[:WORST]:
        values = [record.clean.value, record.corrupted.value] if check.has_choice else [record.l2]
        prompts = "<br>".join(_marked(check, record, side) for side in ("clean", "corrupted"))
        rows.append([escape(record.where), prompts, *map(number, values), record.outcome])
    header = ["", "clean and corrupted prompt", f"{unit}, clean", "corrupted", "outcome"]
    header = header if check.has_choice else [*header[:2], unit, "outcome"]
    return f"<h3>{title}</h3>" + table(header, rows, numeric=range(2, len(header) - 1))


def _marked(check: PairCheck, record: PairRecord, side: str) -> str:
    """A prompt with the tokens that differ marked."""
    pair = check.pairs[record.pair]
    ids = pair.clean if side == "clean" else pair.corrupted[record.partner]
    different = {swap.position for swap in record.swaps}
    html, before = "", ""
    for i in range(len(ids)):
        text = check.tokenizer.decode(ids[: i + 1])
        # What a token adds to the text; a decoder that rewrites what came before shows the token by itself.
        added = text[len(before) :] if text.startswith(before) else check.tokenizer.decode([ids[i]])
        before = text
        space = added[: len(added) - len(added.lstrip(" "))]
        piece = escape(added[len(space) :]).replace("\n", "↵<br>")
        html += space + (f"<mark>{piece}</mark>" if i in different else piece)
    return html


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
    """How many pairs repeat, share a prompt, are shifted or of another structure."""
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
