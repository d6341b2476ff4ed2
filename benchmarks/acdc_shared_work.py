"""What ACDC over a grid of thresholds costs against single runs, and what a shortlist saves and changes.

    python -m benchmarks.acdc_shared_work            # the bundled model on IOI
    python -m benchmarks.acdc_shared_work --task greater_than --output outputs/shared_work.json

Every ratio is of processor times in one run. `differ`: edges that only one of the two circuits has, of a grid over all
thresholds; `exact` must have none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from acdc.circuit import Circuit
from acdc.discovery import discover
from acdc.experiment import Experiment
from acdc.files import write_json

SHORTLISTS = ("eap", "eap_ig", "exact")


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return function(), time.process_time() - start


def grid(experiment: Experiment) -> list[dict[str, Any]]:
    """The grid in one run, exactly and nested, against ten runs."""
    exact, exact_seconds = timed(lambda: discover(experiment, "acdc_scores"))
    nested, nested_seconds = timed(lambda: discover(experiment, "acdc_scores", nested=True))
    thresholds = exact.method["thresholds"]
    singles, seconds = timed(lambda: [discover(experiment, threshold=threshold) for threshold in thresholds])
    expected = {
        edge: max((t for t, c in zip(thresholds, singles, strict=True) if edge in c), default=0.0)
        for edge in exact.graph
    }
    decisions = sum(circuit.metrics["decisions"] for circuit in singles)
    rows: list[dict[str, Any]] = [{"what": f"{len(thresholds)} single runs", "tests": decisions, "seconds": seconds}]
    for name, circuit, its in (("grid", exact, exact_seconds), ("grid, nested", nested, nested_seconds)):
        differ = sum(circuit.tested[edge] != score for edge, score in expected.items())
        rows.append({"what": name, "tests": circuit.metrics["tested"], "seconds": its, "differ": differ})
    return [{**row, "ratio": row["seconds"] / seconds} for row in rows]


def shortlists(experiment: Experiment) -> list[dict[str, Any]]:
    """ACDC with edges ruled out, against plain ACDC."""
    plain, seconds = timed(lambda: discover(experiment))
    rows: list[dict[str, Any]] = [
        {"what": "plain ACDC", "tests": len(plain.tested), "seconds": seconds, "edges": len(plain)}
    ]
    for method in SHORTLISTS:
        for share in (0.2, 0.5):
            options: dict[str, Any] = {"shortlist": method, "shortlist_share": share, "shortlist_compare": False}
            for only in (True, False):
                circuit, its = timed(lambda: discover(experiment, shortlist_only=only, **options))  # noqa: B023
                rows.append(
                    {
                        "what": f"{method}, {share:.0%}, {'only' if only else 'first'}",
                        "tests": len(circuit.tested),
                        "seconds": its,
                        "edges": len(circuit),
                        "differ": differing(plain, circuit),
                    }
                )
    return [{**row, "ratio": row["seconds"] / seconds} for row in rows]


def differing(one: Circuit, other: Circuit) -> int:
    return len(set(one) ^ set(other))


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table("", *(("tests", "edges", "differ", "seconds", "ratio")), title=title)
    for row in rows:
        cells = [str(row.get(key, "")) for key in ("tests", "edges", "differ")]
        table.add_row(row["what"], *cells, f"{row['seconds']:.2f}", f"{row['ratio']:.2f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--output", type=Path, default=Path("outputs/acdc_shared_work.json"))
    arguments = parser.parse_args()
    console = Console()
    experiment = Experiment.build(task=arguments.task)
    discover(experiment)  # what happens once, happens before
    result = {"grid": grid(experiment), "shortlists": shortlists(experiment)}
    for title, rows in result.items():
        show(console, f"{arguments.task}: {title}", rows)
    write_json(arguments.output, result)
    console.print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
