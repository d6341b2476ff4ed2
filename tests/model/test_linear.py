"""The product against the same product in float64, whichever kernel takes it."""

from __future__ import annotations

import pytest
import torch

from acdc.model import linear as module
from acdc.model.linear import linear


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["dense", "transposed", "columns of a larger one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products(dtype: torch.dtype, layout: str, bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of PyTorch has no oneDNN operator")
    monkeypatch.setattr(module, "onednn_is_faster", lambda: onednn)
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, 48, dtype=dtype)
    W = {
        "dense": torch.randn(20, 48, dtype=dtype),
        "transposed": torch.randn(48, 20, dtype=dtype).T,
        "columns of a larger one": torch.randn(48, 60, dtype=dtype)[:, 20:40].T,
    }[layout]
    b = torch.randn(20, dtype=dtype) if bias else None
    expected = torch.einsum("...i,oi->...o", x.double(), W.double()) + (0 if b is None else b.double())
    for some, want in ((x, expected), (x.transpose(0, 2), expected.transpose(0, 2))):
        with torch.no_grad():
            got = linear(some, W, b)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_gradients_pass_through() -> None:
    x, W = torch.randn(4, 6, requires_grad=True), torch.randn(5, 6)
    linear(x, W).sum().backward()
    torch.testing.assert_close(x.grad, W.sum(0).expand(4, 6))


def test_the_kernel_is_chosen_once_and_without_failing() -> None:
    module.onednn_is_faster.cache_clear()
    assert module.onednn_is_faster() in (True, False)
    assert module.onednn_is_faster.cache_info().misses == 1
