"""Numbers as tables show them."""

from __future__ import annotations

import math

import pytest

from acdc.report.numbers import share, thousandths


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (-0.12345, "-0.123"),
        (-0.0004, "0.000"),
        (-0.0, "0.000"),
        (1.0, "1.000"),
        (None, "—"),
        (math.nan, "—"),
    ],
)
def test_three_digits_and_no_negative_nought(value: float | None, shown: str) -> None:
    assert thousandths(value) == shown


def test_a_share_is_in_percent() -> None:
    assert [share(value) for value in (0.5, -0.00001, None, math.inf)] == ["50.0%", "0.0%", "—", "—"]
