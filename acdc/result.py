"""What a computation returns: tables, labelled arrays, a summary of numbers and notes.

A result knows neither files nor pages. `acdc.report.writer` writes any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from acdc.circuit import Circuit


class Labelled(NamedTuple):
    """An array and the names of its axes.

    Attributes
    ----------
    axes : tuple of str
        One name an axis, such as `("layer", "head")`.
    values : numpy.ndarray
    """

    axes: tuple[str, ...]
    values: np.ndarray


class Result:
    """The base of what a computation returns. A subclass overrides what it has."""

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return the tables by name; the writer writes each as NAME.csv, unless it has no rows."""
        return {}

    def arrays(self) -> dict[str, dict[str, Labelled]]:
        """Return the arrays by name; the writer writes each group as NAME.npz."""
        return {}

    def documents(self) -> dict[str, object]:
        """Return nested values by name; the writer writes each as NAME.json."""
        return {}

    def circuits(self) -> dict[str, Circuit]:
        """Return circuits by name; the writer saves each as NAME.json."""
        return {}

    def summary(self) -> dict[str, object]:
        """Return the numbers for `metrics.json` and for trackers."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Return what a reader should see first, one line each."""
        return ()


def as_table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Make a table of rows.

    Parameters
    ----------
    rows : sequence of mapping
        The columns are the keys of all rows, in the order in which they first occur. None, or a key that a row lacks,
        is a missing value; whole numbers stay whole beside missing ones.

    Returns
    -------
    pandas.DataFrame
    """
    columns = dict.fromkeys(key for row in rows for key in row)
    return pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in columns})


def _column(values: list[object]) -> pd.Series:
    whole = {type(value) for value in values if value is not None} == {int}
    return pd.Series(values, dtype="Int64") if whole else pd.Series(values)
