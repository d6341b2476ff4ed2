"""The state of the process: results do not depend on it, and it is afterwards what it was."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from experiments import random_pairs

from acdc import Experiment, discover, patch
from acdc.discovery import METHODS
from acdc.errors import RunError
from acdc.evaluation.areas import areas
from acdc.evaluation.completeness import completeness
from acdc.evaluation.faithfulness import faithfulness, intervals
from acdc.evaluation.hypothesis import Scores, independence, minimality_test
from acdc.evaluation.measures import measure
from acdc.evaluation.minimality import minimality
from acdc.evaluation.preference import preferences
from acdc.evaluation.scrubbing import scrub
from acdc.patching import METHODS as PATCHES
from acdc.process import ordinary_state, undisturbed, use_tf32, uses_tf32, without_tf32
from acdc.tasks.base import Pair, Task

SHORT: dict[str, dict[str, Any]] = {
    "acdc": {"threshold": 0.05, "verify_every": 5},  # else how often it looks hangs on the time
    "acdc_scores": {"thresholds": [0.02, 0.1]},
    "subnetwork_probing": {"steps": 12, "batch_size": 2},
    "edge_pruning": {"steps": 12, "batch_size": 2},
}
EQUAL = [Pair(**{**vars(pair), "subject": [1, 3]}) for pair in random_pairs(8, (5, 5, 5, 5))]
TASK = Task("random", EQUAL, "logit_diff", {"logit_diff": 0.05})


@contextmanager
def setting(set_: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    set_(value)
    try:
        yield
    finally:
        set_(before)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad_off": lambda: setting(torch.set_grad_enabled, False, True),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "meta": lambda: setting(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "matmul": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "seeds": lambda: setting(seed_all, 12345, 0),
}


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def state() -> dict[str, Any]:
    """All of it that can be seen."""
    kind, keys, *rest = np.random.get_state()
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": (kind, keys.tolist(), rest),
        "random": random.getstate(),
    }


def plain(value: Any) -> Any:
    """Numbers as they are, to the last bit; NaN equals NaN."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if "seconds" not in str(key)}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("gpt2", tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def ordinary(model: Path) -> dict[str, Any]:
    return everything(model)


def everything(model: Path) -> dict[str, Any]:
    """What every method, every kind of patching and the evaluations find, each on an experiment of its own, and once
    more the methods that train on one that others have used."""

    parts = Experiment.build(model, TASK).model  # loading takes the longest

    def experiment() -> Experiment:
        return Experiment.build(parts, TASK)

    found: dict[str, Any] = {}
    used = experiment()
    for method in METHODS.built_in:
        for name, on in ((method, experiment()), (f"{method}, again", used)):
            circuit = discover(on, method, **SHORT.get(method, {}))
            found[name] = [circuit.edges, circuit.tested, circuit.metrics]
    for kind in PATCHES:
        if kind != "sae":
            found[kind] = patch(experiment(), kind).rows()
    one = experiment()
    circuit = discover(one, "eap", edges=20)
    (measured,) = measure(one, [circuit])
    scores = Scores(one)
    found["evaluations"] = [
        faithfulness(one, circuit),
        intervals(measured, 50),
        vars(scrub(one, circuit, 2)),
        vars(areas(one, circuit.tested)),
        completeness(one, circuit, draws=3).as_dict(),
        minimality(one, circuit).worth,
        independence(scores, circuit, permutations=20).as_dict(),
        minimality_test(scores, circuit, draws=5).as_dict(),
        [str(one) for one in preferences(one)],
    ]
    return {key: plain(value) for key, value in found.items()}


@pytest.mark.parametrize("name", STATES)
def test_results_do_not_depend_on_the_state_and_leave_it(name: str, model: Path, ordinary: dict[str, Any]) -> None:
    with STATES[name]():
        before = state()
        found = everything(model)
        assert state() == before
    for key, value in ordinary.items():
        assert found[key] == value, key


@pytest.mark.parametrize("method", ["eap", "subnetwork_probing", "edge_pruning"])
def test_weights_that_were_made_in_inference_mode(method: str, model: Path, ordinary: dict[str, Any]) -> None:
    parts = Experiment.build(model, TASK).model
    with torch.inference_mode():
        parts = parts.to("cpu", torch.float64).to("cpu", torch.float32)
    assert parts.W_E.is_inference()
    circuit = discover(Experiment.build(parts, TASK), method, **SHORT.get(method, {}))
    assert plain([circuit.edges, circuit.tested, circuit.metrics]) == ordinary[method]


def test_an_error_leaves_the_state_too() -> None:
    @undisturbed
    def fail() -> None:
        assert torch.zeros(1).dtype == torch.float32
        torch.rand(3, requires_grad=True).sum().backward()
        raise ValueError("mine")

    with torch.inference_mode(), STATES["float64"](), STATES["meta"]():
        before = state()
        with pytest.raises(ValueError, match="mine"):
            fail()
        assert state() == before


@pytest.mark.parametrize(
    ("asks", "size"),
    [
        (lambda: torch.empty(2**60), " for 4.29e+09 GiB more"),
        (lambda: np.empty(2**60, np.uint8), " for 1.00 EiB more"),
        (None, ""),
    ],
)
def test_an_allocation_that_fails_is_one_line(asks: Callable[[], Any] | None, size: str) -> None:
    def cuda() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of …")

    expected = " for 20.00 GiB more" if asks is None else size
    with pytest.raises(RunError) as caught, ordinary_state():
        (asks or cuda)()
    assert str(caught.value).startswith(f"there is not enough memory{expected}: lower task.size")
    assert all(option in str(caught.value) for option in ("method.memory_gb", "patch.memory_gb", "model.dtype"))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size"), ordinary_state():
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_too_many_pairs_for_the_memory_end_the_command_with_one_line(here: Path) -> None:
    """A limit stands in for a small machine: the model loads, the pairs do not fit."""
    arguments = ["task=induction", "task.size=40000", "task.check=off", "method.memory_gb=0.1", "hydra.run.dir=out"]
    program = (
        "import resource, sys, torch, transformer_lens; from acdc.cli import run;"
        "now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, now + 2**29));"
        f"sys.exit(run({arguments}))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("acdc: there is not enough memory")
    assert not list(here.iterdir())


def test_nothing_is_ordinary_by_accident() -> None:
    """The states above are ones that the test process is not in."""
    plainly = state()
    for name, enter in STATES.items():
        with enter():
            assert state() != plainly, name
    with nullcontext():
        assert {key: state()[key] for key in ("grad", "dtype")} == {"grad": True, "dtype": torch.float32}


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("before", ["ieee", "tf32"])
def test_tf32_is_used_while_the_package_works_only(before: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    products = torch.backends.cuda.matmul
    monkeypatch.setattr("acdc.process._tf32", False)
    ordinary = products.fp32_precision
    products.fp32_precision = before
    with ordinary_state():
        assert products.fp32_precision == "ieee"
        use_tf32(asked)  # as loading a model does
    assert products.fp32_precision == before
    with ordinary_state():
        assert uses_tf32() == asked
        assert products.fp32_precision == ("tf32" if asked else "ieee")
        with without_tf32():
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == ("tf32" if asked else "ieee")
    assert products.fp32_precision == before
    products.fp32_precision = ordinary
