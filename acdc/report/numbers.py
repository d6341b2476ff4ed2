"""Numbers as people read them."""

from __future__ import annotations

import math


def number(value: object) -> str:
    """Format a value with four significant digits and separated thousands; a dash stands for a missing one."""
    if isinstance(value, bool) or value is None:
        return "—" if value is None else "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "—" if math.isnan(value) else f"{value:z,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def thousandths(value: float | None) -> str:
    """Format an effect or a recovery with three decimals; a dash stands for a missing one."""
    return "—" if value is None or math.isnan(value) else f"{value:z.3f}"


def share(value: float | None) -> str:
    """Format a share in percent; a dash stands for a missing one."""
    return "—" if value is None or not math.isfinite(value) else f"{value:z.1%}"
