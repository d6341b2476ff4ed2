"""The matrix product, by the faster of the two kernels that PyTorch brings.

In single precision on the CPU PyTorch multiplies with MKL, which takes a path of about half the speed on processors
that are not Intel's. oneDNN, which PyTorch uses for other types and `torch.compile`, has no such path. Both multiply
and add in single precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, as `torch.nn.functional.linear`: x `... d_in`, W `d_out d_in`, b `d_out`."""
    single = x.dtype == torch.float32 and x.device.type == "cpu"
    # oneDNN is very slow where a matrix's rows do not lie behind each other.
    dense = x.is_contiguous() and (W.is_contiguous() or W.T.is_contiguous())
    if single and dense and not torch.is_grad_enabled() and onednn_is_faster():
        return _onednn(x, W, b)
    return F.linear(x, W, b)


def _onednn(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
    return product


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN is there, right, and clearly faster than MKL; measured once, in a few milliseconds."""
    x, W, b = torch.linspace(-1, 1, 2**16).view(128, 512), torch.eye(512), torch.linspace(0, 1, 512)
    with torch.inference_mode():
        try:
            right = torch.equal(_onednn(x, W, b), x + b)
        except (AttributeError, RuntimeError):  # the operator is not in this build of PyTorch
            return False
        return right and _seconds(lambda: _onednn(x, W, b)) < 0.8 * _seconds(lambda: F.linear(x, W, b))


def _seconds(product: Callable[[], Tensor]) -> float:
    """The fastest of a few runs."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return min(times)
