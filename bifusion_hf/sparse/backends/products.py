"""Dense matrix products of the torch backend."""

from functools import cache

import torch


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [m, k] @ b [k, n], without autograd; a is contiguous, b contiguous or the transpose of a contiguous matrix.

    float32 products on a CPU go to oneDNN: torch's own choice, MKL, runs at half the rate on AMD processors. The
    operator is the one that torch.compile emits. float16 on a CPU is computed in float32: its own products are up to
    fifty times slower there.
    """
    if a.device.type == "cpu":
        if a.dtype == torch.float32 and torch.backends.mkldnn.enabled and onednn_products_work():
            return _onednn_product(a, b)
        if a.dtype == torch.float16:
            return multiply(a.float(), b.float()).half()
    return a @ b


def multiply_to_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [m, k] @ b [k, n] as `multiply`, but what 16-bit matrices give is never rounded to 16 bits: [m, n] float32."""
    if a.dtype not in (torch.float16, torch.bfloat16):
        return multiply(a, b)
    # torch 2.8 and later; of CUDA alone.
    if a.device.type == "cuda" and torch.version.cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a, b, out_dtype=torch.float32)
    # A product of two 16-bit numbers is exact in float32.
    return multiply(a.float(), b.float())


def _onednn_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


@cache
def onednn_products_work() -> bool:
    """Whether this build of torch has the operator, and it gives what a matrix product gives.

    The operator is no part of torch's public interface, so it is tried before it is trusted.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(32, 48, generator=generator), torch.rand(48, 16, generator=generator)
    # The first call may come from within autocast, which would turn the comparison's product into half precision.
    with torch.autocast("cpu", enabled=False):
        try:
            found = _onednn_product(a, b)
        except (AttributeError, RuntimeError, TypeError, NotImplementedError):
            return False
        return found.shape == (32, 16) and torch.allclose(found, a @ b, rtol=1e-5)
