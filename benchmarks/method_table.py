"""Every method in one table, on language tasks and on models whose circuit is known:

    python -m benchmarks.method_table [--output DIR] [--page docs/method_comparison.md]

The same as `acdc job=compare` on three tasks of the bundled model, and on both compiled programs and both gates with
zero and corrupted ablation. What a method has found is kept in DIR, so that a second run goes on where the first one
stopped, and the page is written anew at no cost. Times are of the processor, on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from acdc import Experiment
from acdc.evaluation.known import known_circuits
from acdc.evaluation.method_table import Judge, Judged, MethodTable, usual_equal_size, usual_sizes
from acdc.files import write_atomically, write_json
from acdc.jobs.compare import judge_all
from acdc.jobs.settings import CompareSettings
from acdc.report.method_table import methods_table
from benchmarks.acdc_speed import processor

LANGUAGE = ("ioi", "greater_than", "gendered_pronoun")
ABLATIONS = ("zero", "corrupted")
THRESHOLDS = [10 ** (-5 + i / 5) for i in range(21)]  # the original's on the tracr tasks
SLOPE = ["eap", "hisp"]  # methods that L2, the metric of these tasks, gives no slope

# Conmy et al. 2023, ACDC's pessimistic AUC over edges with the task's own loss (L2), against the published sets.
PUBLISHED = {
    ("tracr_reverse", "zero"): 1.0,
    ("tracr_reverse", "corrupted"): 0.2,
    ("tracr_proportion, the original's prompts", "zero"): 1.0,
    ("tracr_proportion, the original's prompts", "corrupted"): 0.6,
}


@dataclass(frozen=True)
class Known:
    """A task whose circuit is known."""

    task: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)


KNOWN = (
    Known("tracr_reverse", "tracr_reverse"),
    Known("tracr_proportion", "tracr_proportion"),
    Known("tracr_proportion", "tracr_proportion, the original's prompts", {"prompts": "original", "size": 50}),
    Known("gate_or", "gate_or"),
    Known("gate_or", "gate_or, all inputs", {"inputs": "all"}),
    Known("gate_and", "gate_and"),
)

PAGE = """# The methods in one table

Made by `python -m benchmarks.method_table` ({machine}).
How to read the columns: [methods.md](methods.md#comparing-methods).
Times are of the processor, on one thread; memory is what a method takes besides the model and its two runs.

## Language tasks

The bundled model, {n_edges} edges, each task's own pairs and metric, corrupted ablation; edges ranked by the size of
their scores. `acdc job=compare task=TASK` makes each of these tables with its report.

{language}
## Known circuits

Compiled programs and hand-built gates ([ground_truth.md](ground_truth.md)), L2. The area under the ROC curve over edges
by the original's pessimistic rule, against the circuit derived from the weights; `random` is the mean of five rankings.
L2 has no slope at the full model, so `eap` and `hisp` refuse it; they stand here with the logit difference, where the
task has answers. `eap_ig` on inputs and `clean_corrupted` need a corrupted run, `attribution_to_circuit` too.
`acdc_scores` has the original's 21 thresholds, 10^-5 to 10^-1.

{derived}
### Beside the published ones

The same against the published sets, with the prompts that these were made with. `published` is what Conmy et al. report
for ACDC with L2 (they give none for the gates); their graph has projection edges, this one none, so that 3 of 15 edges
(0.200) are 2 of 11 here (0.182), and 6 of 10 (0.600) are 4 of 7 (0.571): the same edges.

{against_published}
- The published sets of zero ablation are themselves runs of ACDC, so a 1.000 of ACDC there says that it finds what it
  has found before. The derived circuits above are the ones to trust.
- Under corrupted ablation most edges of these sets carry the same in every prompt, and no method that intervenes can
  see them. `hisp` and `information_flow` do not: they look at the clean run only, and say the same under every
  ablation. Beyond the edges that have an effect, the order of trained gates is chance.
- For HISP and subnetwork probing Conmy et al. report language models, whose weights are not part of this project, with
  KL and corrupted ablation (ACDC / HISP / SP): docstring .434 / .183 / .937, greater-than .883 / .279 / .820, IOI .868
  / .239 / .888.
- `gate_or` in the tables above: with both bits set each head alone is enough, so to methods that test one edge at a
  time both look idle; ACDC keeps one of two branches. [ground_truth.md](ground_truth.md#acdcs-grades) says more.
"""


def compare(experiment: Experiment, job: CompareSettings, folder: Path) -> MethodTable:
    """The rows of every method, found or read."""
    n_edges = len(experiment.graph)
    truths, absent = known_circuits(experiment)
    judge = Judge(experiment, usual_sizes(n_edges), usual_equal_size(n_edges, truths), job.absolute, truths)
    return MethodTable(judge, *judge_all(judge, job, folder, Console(stderr=True)), absent)


def language(output: Path) -> str:
    """A table for each task."""
    texts = []
    for task in LANGUAGE:
        experiment = Experiment.build("pocket", task)
        table = compare(experiment, CompareSettings(), output / task)
        shown = methods_table(table)
        title = f"### {task} ({experiment.metric_name}, {len(experiment.pairs)} pairs)"
        keep = [i for i, name in enumerate(shown.header) if name != "s"]
        texts.append(f"{title}\n\n{markdown(shown.header, [list(map(str, row)) for row in shown.rows], keep)}")
        write_json(output / task / "rows.json", {one.method: one.as_dict() for one in table.judged})
    return "\n".join(texts)


def known(output: Path) -> dict[tuple[str, str], dict[str, Judged]]:
    """By title and ablation, the rows of all methods; those that need a slope with the logit difference."""
    found: dict[tuple[str, str], dict[str, Judged]] = {}
    for case in KNOWN:
        for ablation in ABLATIONS:
            folder = output / f"{case.title} {ablation}".replace(",", "").replace("'", "").replace(" ", "_")
            experiment = Experiment.build(None, case.task, ablation=ablation, **case.options)
            job = CompareSettings(options={"acdc_scores": {"thresholds": THRESHOLDS}})
            rows = {one.method: one for one in compare(experiment, job, folder).judged}
            if experiment.readouts.answers.shape[1]:
                experiment = Experiment.build(None, case.task, "logit_diff", ablation, **case.options)
                more = compare(experiment, CompareSettings(methods=SLOPE), folder / "logit_diff")
                rows |= {one.method: one for one in more.judged if one.method in SLOPE}
            found[case.title, ablation] = rows
    return found


def methods_of(found: Mapping[Any, Mapping[str, Judged]]) -> list[str]:
    """Every method that has a row, in the order of the table."""
    order = [*CompareSettings().settings]
    return [name for name in order if any(name in rows for rows in found.values())]


def derived_table(found: Mapping[tuple[str, str], Mapping[str, Judged]]) -> str:
    """AUC against the derived circuit: a row a method, a column a task and ablation."""
    text = ""
    for ablation in ABLATIONS:
        columns = [title for title, its in found if its == ablation]
        rows = [
            [_name(method), *(_auc(found[title, ablation].get(method), "derived") for title in columns)]
            for method in methods_of(found)
        ]
        text += f"### {ablation} ablation\n\n{markdown(['method', *columns], rows)}\n"
    return text


def published_table(found: Mapping[tuple[str, str], Mapping[str, Judged]]) -> str:
    """AUC against the published sets beside what the original reports."""
    cases = list(PUBLISHED)
    header = ["method", *(f"{title}, {ablation}" for title, ablation in cases)]
    rows = [["published (ACDC)", *(f"{PUBLISHED[case]:.3f}" for case in cases)]]
    rows += [
        [_name(method), *(_auc(found[case].get(method), "published") for case in cases)]
        for method in methods_of({case: found[case] for case in cases})
    ]
    return markdown(header, rows)


def _name(method: str) -> str:
    return f"`{method}`" + " (logit difference)" * (method in SLOPE)


def _auc(one: Judged | None, label: str) -> str:
    if one is None or label not in one.grades:
        return "—"
    column = "auc" if label == "derived" else f"auc_{label}"
    value = one.numbers[column]
    return "—" if value is None else f"{value:.3f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], keep: Sequence[int] | None = None) -> str:
    """A Markdown table of some columns."""
    keep = range(len(header)) if keep is None else keep
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "".join(f"| {' | '.join(line[i] for i in keep)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method in one table.")
    parser.add_argument("--output", type=Path, default=Path("outputs/method_table"), help="folder to write")
    parser.add_argument("--page", type=Path, default=Path("docs/method_comparison.md"), help="the page to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    found = known(given.output)
    machine = f"{processor()}, {psutil.cpu_count()} cores, torch {torch.__version__}, {date.today()}"
    page = PAGE.format(
        machine=machine,
        n_edges=len(Experiment.build("pocket", LANGUAGE[0]).graph),
        language=language(given.output),
        derived=derived_table(found),
        against_published=published_table(found),
    )
    write_atomically(given.page, page)


if __name__ == "__main__":
    main()
