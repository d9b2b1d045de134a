"""Which product a backend asks for, and how wide its sums are."""

import pytest
import torch
from launch_counter import DEVICE, LaunchCounter

from bifusion_hf.sparse.backends import products


@pytest.fixture
def asked(monkeypatch):
    """The kinds of what oneDNN is asked to multiply, where its operator works."""
    found = []
    monkeypatch.setattr(products, "_onednn_product", lambda a, b: found.append((a.dtype, b.dtype)) or a @ b)
    monkeypatch.setattr(products, "onednn_products_work", lambda: True)
    return found


def factors(dtype, depth=5):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((3, depth), (depth, 4))]


@pytest.mark.parametrize(
    ("dtype", "kinds"),
    [
        (torch.float32, [torch.float32]),
        # Its own products are slow.
        (torch.float16, [torch.float32]),
        (torch.bfloat16, []),
        (torch.float64, []),
    ],
)
def test_single_precision_goes_to_onednn(asked, dtype, kinds):
    a, b = factors(dtype)
    found = products.multiply(a, b)
    assert asked == [(kind, kind) for kind in kinds] and found.dtype == dtype
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=1e-2, atol=1e-2)


def test_and_to_torch_where_the_operator_does_not_work_or_is_switched_off(asked, monkeypatch):
    a, b = factors(torch.float32)
    enabled = torch.backends.mkldnn.set_flags(_enabled=False)[0]
    try:
        assert torch.equal(products.multiply(a, b), a @ b)
    finally:
        torch.backends.mkldnn.set_flags(_enabled=enabled)
    monkeypatch.setattr(products, "onednn_products_work", lambda: False)
    assert torch.equal(products.multiply(a, b), a @ b) and asked == []


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_sums_of_sixteen_bits_come_out_in_single_precision(dtype, expected):
    a, b = factors(dtype, depth=300)
    found = products.multiply_to_float32(a, b)
    assert found.dtype == expected
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not hasattr(torch.ops.aten.mm, "dtype"), reason="of torch 2.8 and later")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_is_asked_for_sums_in_single_precision(dtype, monkeypatch):
    """Nothing is made wider before."""
    seen = []

    def mm(a, b, **options):
        seen.append((a.dtype, b.dtype, options))
        return a.float() @ b.float()

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch, "mm", mm)
    a, b = factors(dtype)
    with LaunchCounter():
        found = products.multiply_to_float32(a.to(DEVICE), b.to(DEVICE)).cpu()
    assert seen == [(dtype, dtype, {"out_dtype": torch.float32})]
    torch.testing.assert_close(found, a.float() @ b.float())


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError, NotImplementedError])
def test_an_operator_that_is_not_there_is_not_used(error, monkeypatch):
    def fail(*_):
        raise error("no such operator")

    monkeypatch.setattr(products, "_onednn_product", fail)
    products.onednn_products_work.cache_clear()
    try:
        assert not products.onednn_products_work()
    finally:
        products.onednn_products_work.cache_clear()


@pytest.mark.parametrize(("scale", "works"), [(1, True), (1 + 1e-6, True), (1 + 1e-4, False)])
def test_an_operator_is_right_but_for_rounding_under_autocast_too(scale, works, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "_onednn_product", lambda a, b: (a.double() @ b.double() * scale).float())
    products.onednn_products_work.cache_clear()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert products.onednn_products_work() == works
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        products.onednn_products_work.cache_clear()
        assert not products.onednn_products_work()
    finally:
        products.onednn_products_work.cache_clear()
