"""The most memory that some work held."""

from __future__ import annotations

import time

import torch

from acdc.engine.memory import PeakMemory


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
