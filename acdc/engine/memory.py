"""How much memory an engine may take."""

from __future__ import annotations

import psutil
import torch

from acdc.errors import ConfigError

_SHARE = 0.25  # of what is free


def budget_bytes(device: torch.device, memory_gb: float | None = None, group: str = "method") -> int:
    """What temporary tensors may take on a device: as told (in `group`), or a quarter of what is free now."""
    if memory_gb is not None:
        if memory_gb <= 0:
            raise ConfigError(f"{group}.memory_gb={memory_gb} is not allowed: give more than 0, or null")
        return int(memory_gb * 2**30)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_SHARE * free)
