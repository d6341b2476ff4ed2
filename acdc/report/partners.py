"""How much a circuit's numbers depend on which corrupted partner is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from acdc.report.numbers import number, share
from acdc.report.view import Section, Table


def partners_section(values: Sequence[Mapping[str, Any]], metric: str) -> Section:
    """Make a row for each partner; `values` are the circuit's numbers with each partner alone."""
    rows = [
        [str(i), number(v["corrupted"]), number(v["circuit"]), share(v["recovery"]), number(v["kl"])]
        for i, v in enumerate(values)
    ]
    header = ["partner", f"{metric}, no edges", f"{metric}, circuit", "recovery", "KL"]
    line = partners_line(values)
    text = (
        f"{line[0].upper() + line[1:]}. How much the circuit itself depends on that choice, a sweep shows (`acdc -m`,"
        " over corruptions or files of pairs): it compares the circuits."
    )
    return Section("The choice of corrupted prompts", [text, Table("", header, rows)])


def partners_line(values: Sequence[Mapping[str, Any]]) -> str:
    """Say in a sentence how far the numbers spread over the partners."""
    recoveries = [v["recovery"] for v in values if v["recovery"] is not None and math.isfinite(v["recovery"])]
    kls = [v["kl"] for v in values]
    text = f"each clean prompt has {len(values)} corrupted partners; the circuit with one of them alone: "
    if recoveries:
        text += f"recovery {share(min(recoveries))} to {share(max(recoveries))}, "
    return text + f"KL {min(kls):.3g} to {max(kls):.3g}"
