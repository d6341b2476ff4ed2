"""What torch keeps for the whole process: set to what the package needs while it works, then put back."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import psutil
import torch

from acdc.errors import RunError

P = ParamSpec("P")
R = TypeVar("R")

# What says how CUDA multiplies float32: from torch 2.9 on, and before.
_CUDA_PRODUCTS = "fp32_precision" if hasattr(torch.backends.cuda.matmul, "fp32_precision") else "allow_tf32"
_NO_MEMORY = re.compile(r"out of memory|(can't|cannot|unable to) allocate|bad_alloc|alloc_failed", re.IGNORECASE)
_ASKED = re.compile(r"allocate ([\d.]+ ?(?:bytes|[KMGTPE]i?B))")


_tf32 = False


def use_tf32(use: bool) -> None:
    """Let CUDA multiply float32 in TensorFloat-32 while the package works, from now on, or not."""
    global _tf32
    _tf32 = use
    _multiply(use)


def uses_tf32() -> bool:
    """Whether CUDA multiplies float32 in TensorFloat-32 while the package works."""
    return _tf32


@contextmanager
def without_tf32() -> Iterator[None]:
    """CUDA multiplies float32 in full."""
    _multiply(False)
    try:
        yield
    finally:
        _multiply(_tf32)


def _multiply(tf32: bool) -> None:
    value: bool | str = tf32
    if _CUDA_PRODUCTS == "fp32_precision":
        value = "tf32" if tf32 else "ieee"
    setattr(torch.backends.cuda.matmul, _CUDA_PRODUCTS, value)


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """A function that neither depends on nor changes what others have told torch; see `ordinary_state`.

    Raises
    ------
    RunError: an allocation failed.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with ordinary_state():
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def ordinary_state() -> Iterator[None]:
    """Gradients are on, inference mode and autocast off, float32 and the CPU the defaults, and float32 is multiplied in
    full, but for `use_tf32`. Global generators of random numbers stand afterwards where they stood before.

    Raises
    ------
    RunError: an allocation failed. The message says what to lower.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(random.setstate, random.getstate())
        if torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        matmul = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and later
        if matmul is not None and matmul.fp32_precision not in ("none", "ieee"):
            stack.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
            matmul.fp32_precision = "ieee"
        products = torch.backends.cuda.matmul
        stack.callback(setattr, products, _CUDA_PRODUCTS, getattr(products, _CUDA_PRODUCTS))
        _multiply(_tf32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # a mode, which makes every operation slower
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
                raise
            asked = _ASKED.search(str(error))
            raise RunError(
                f"there is not enough memory{f' for {_readable(asked[1])} more' if asked else ''}: lower task.size"
                " (fewer pairs) or method.memory_gb (of job=patch: patch.memory_gb), or give model.dtype=bfloat16"
            ) from error


def _readable(asked: str) -> str:
    number, _, unit = asked.partition(" ")
    return f"{int(number) / 2**30:.3g} GiB" if unit == "bytes" else asked


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
