"""Automated circuit discovery for transformer language models.

    from acdc import Experiment, discover
    experiment = Experiment.build(model="pocket", task="ioi", metric="logit_diff")
    circuit = discover(experiment, method="acdc", threshold=0.03)

Names are loaded on first use, so that `acdc.graph` and `acdc.circuit` need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    "Circuit": "acdc.circuit",
    "Edge": "acdc.graph",
    "Graph": "acdc.graph",
    "GraphConfig": "acdc.graph",
    "Experiment": "acdc.experiment",
    "discover": "acdc.discovery",
    "patch": "acdc.patching",
}

__all__ = list(_EXPORTS)


if TYPE_CHECKING:
    from acdc.circuit import Circuit as Circuit
    from acdc.discovery import discover as discover
    from acdc.experiment import Experiment as Experiment
    from acdc.graph import Edge as Edge
    from acdc.graph import Graph as Graph
    from acdc.graph import GraphConfig as GraphConfig
    from acdc.patching import patch as patch
else:

    def __getattr__(name):
        if name in _EXPORTS:
            return getattr(importlib.import_module(_EXPORTS[name]), name)
        raise AttributeError(f"module 'acdc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
