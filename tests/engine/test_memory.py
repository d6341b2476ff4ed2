"""The most memory that some work held."""

from __future__ import annotations

import time

import torch

from acdc.engine.memory import PeakMemory, measured_bytes, units_that_fit


def test_what_is_held_and_given_back_counts() -> None:
    kept = torch.ones(2**22)  # 16 MB, there before
    with PeakMemory(torch.device("cpu")) as memory:
        large = torch.ones(25 * 2**20)  # 100 MB
        time.sleep(0.05)
        del large
    assert 95 < memory.mb < 140
    with PeakMemory(torch.device("cpu")) as memory:
        time.sleep(0.02)
    assert 0 <= memory.mb < 20
    assert kept.sum() == 2**22


def test_measured_is_what_lives_at_once() -> None:
    before = torch.ones(1000)

    def work() -> torch.Tensor:
        a = before * 2  # 4000 bytes
        b = a[:500].view(5, 100)  # a view takes nothing
        b += 1
        c = torch.cat((a, a))  # 8000 beside the 4000
        del a, b
        d = c[:100].clone()  # the 4000 are gone
        del c
        return torch.outer(d, d).sum() + d.double()

    assert measured_bytes(work) == 400 + 100 * 100 * 4 + 4
    assert measured_bytes(lambda: before[:10]) == 0
    assert measured_bytes(lambda: [before * i for i in range(3)]) == 3 * 4000
    assert measured_bytes(lambda: measured_bytes(lambda: before * 2) == 4000 and before * 3) == 4000  # inside another
    assert units_that_fit(lambda: before * 2, 9000) == 2
    assert units_that_fit(lambda: before * 2, 10) == 1
    with torch.inference_mode():
        assert measured_bytes(lambda: (before * 2) * 3) == 2 * 4000


def test_gradients_are_measured_too() -> None:
    weight = torch.ones(100, requires_grad=True)

    def work() -> None:
        (weight.exp() * 2).sum().backward()

    assert 2 * 400 < measured_bytes(work) <= 4 * 400 + 8
    assert measured_bytes(work) == measured_bytes(work)
