"""The example that a backend has to get right before it is trusted."""

import pytest
import torch
from sparse_examples import Scaled

from bifusion_hf.sparse.backends import torch_backend
from bifusion_hf.sparse.backends.self_test import check_against_torch


def wrong(kind, of_result=1.0, of_features=1.0, of_kernel=1.0):
    """The torch backend with results or gradients of one kind of layer multiplied by numbers."""

    def convolve(features, kernel, grid, layer):
        if layer.kind != kind:
            return torch_backend.convolve(features, kernel, grid, layer)
        features, kernel = Scaled.apply(features, of_features), Scaled.apply(kernel, of_kernel)
        out = torch_backend.convolve(features, kernel, grid, layer)
        return out + (out * (of_result - 1)).detach()

    return convolve


@pytest.mark.parametrize("kind", ["submanifold", "strided", "transposed"])
@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("of_result", "result"),
        ("of_features", "gradient of the input"),
        ("of_kernel", "gradient of the kernel"),
    ],
)
def test_results_and_gradients_of_each_kind_of_layer_are_compared(kind, what, name):
    """With a tolerance of a ten-thousandth in single precision, in which nothing else is wrong."""
    check_against_torch(wrong(kind, **{what: 1.00008}), "cpu", (torch.float32,))
    for factor in (1.00015, float("nan")):
        with pytest.raises(ArithmeticError, match=f"the {name} of a {kind} convolution in torch.float32 is wrong by"):
            check_against_torch(wrong(kind, **{what: factor}), "cpu", (torch.float32,))


@pytest.mark.parametrize("shift", [-1, 1])
def test_results_that_are_all_too_small_are_as_wrong_as_those_that_are_too_large(shift):
    def convolve(*given):
        return torch_backend.convolve(*given) + shift

    with pytest.raises(ArithmeticError, match="the result of a submanifold convolution"):
        check_against_torch(convolve, "cpu", (torch.float32,))


def test_half_precisions_may_be_wrong_by_their_rounding():
    check_against_torch(wrong("strided", of_result=1.008), "cpu", (torch.bfloat16,))
    with pytest.raises(ArithmeticError, match="in torch.bfloat16 is wrong by .*; expected less than 2e-02"):
        check_against_torch(wrong("strided", of_result=1.05), "cpu", (torch.float32, torch.bfloat16)[1:])


def test_within_inference_and_autocast():
    seen = []

    def convolve(features, kernel, grid, layer):
        seen.append((features.dtype, torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        return torch_backend.convolve(features, kernel, grid, layer)

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        check_against_torch(convolve, "cpu", (torch.float32, torch.bfloat16))
    assert seen == [(dtype, False, False) for dtype in (torch.float32, torch.bfloat16) for _ in range(3)]
