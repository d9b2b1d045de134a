import dataclasses
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bifusion_hf.import_utils import is_available
from bifusion_hf.io.compiled_library import KernelError
from bifusion_hf.sparse import backends
from bifusion_hf.sparse.backends import choose_backend, torch_backend, triton_backend
from bifusion_hf.sparse.backends.self_test import check_against_torch
from bifusion_hf.sparse.backends.triton_backend import DTYPES, Tile, choose_gradient_tile, choose_tile
from bifusion_hf.sparse.finish import Finish
from bifusion_hf.sparse.kernel_maps import KernelMap


HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(not is_available("triton"), reason="needs Triton (Linux): pip install triton")
# What a program may have: compute capability -> bytes. 86 is an RTX 30.
SHARED_MEMORY = {86: 99 << 10, 80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma", 100: "tcgen05.mma"}
# Instructions of PTX whose order is left to the device.
ATOMIC = re.compile(r"^\s*(@\S+\s+)?(atom|red)\.", re.MULTILINE)
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@pytest.fixture
def nothing_tried():
    # Held here: a test may have put others in their place when this ends.
    cached = (triton_backend.triton_unavailable_reason, triton_backend._kernels)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter(tmp_path):
    """Results, gradients, determinism, finishing: see `interpreted_triton.py`."""
    triton = pytest.importorskip("triton")
    import numpy as np

    versions = [tuple(map(int, module.__version__.split(".")[:2])) for module in (triton, np)]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        pytest.skip("Triton's interpreter works with numpy 2.4 from version 3.7 on")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [*command, HERE / "interpreted_triton.py"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path)},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-8000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout


class Recorder:
    """In the place of a kernel: notes what its launches would compile."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        assert all(0 < size < 65536 for size in grid[1:]) and 0 < grid[0] < 2**31
        return self.launch

    def launch(self, *arguments, num_warps=4, num_stages=3, **named):
        named.update(zip(self.kernel.arg_names, arguments, strict=False))
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = named.pop(parameter.name)
            # As Triton does at a launch: constants, what is None and 1 are compiled in, and multiples of 16 known.
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                signature[parameter.name], constants[(place,)] = "constexpr", value
                continue
            is_tensor = isinstance(value, torch.Tensor)
            signature[parameter.name] = POINTERS[value.dtype] if is_tensor else "i32"
            if is_tensor or value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        assert not named
        options = {"num_warps": num_warps, "num_stages": num_stages}
        self.launches[str((self.kernel.__name__, signature, constants, attributes, options))] = (
            self.kernel,
            (signature, constants, attributes),
            options,
        )


@pytest.fixture
def launches(nothing_tried, monkeypatch):
    pytest.importorskip("triton")
    from bifusion_hf.sparse.backends import triton_kernels

    noted = {}
    names = ("convolve_rows", "add_splits", "sum_pairs")
    recorders = {name: Recorder(getattr(triton_kernels, name), noted) for name in names}
    monkeypatch.setattr(triton_backend, "_kernels", lambda: SimpleNamespace(IS_INTERPRETED=False, **recorders))
    return noted


def launch_all(dtype, rows, in_channels, out_channels):
    """What training and inference of a layer launch."""
    kernel_map = KernelMap(torch.full((27, rows), rows, dtype=torch.int32), rows)
    features, grad = (torch.zeros(rows, channels, dtype=dtype) for channels in (in_channels, out_channels))
    kernel = torch.zeros(27, in_channels, out_channels, dtype=dtype)
    triton_backend.multiply(features, kernel, kernel_map)
    triton_backend.multiply(grad, kernel, kernel_map, is_transposed=True, is_mirrored=True)
    triton_backend.kernel_gradient(features, grad, kernel_map)
    for shortcut in (None, grad):
        finish = Finish(torch.ones(out_channels), torch.zeros(out_channels), shortcut, True)
        triton_backend.multiply(features, kernel, kernel_map, finish=finish)


def compile_all(launches, capabilities, folder, monkeypatch):
    """Compiles each launch for each GPU, which needs none; yields (name, capability, dtype, kernel)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    for kernel, source, options in launches.values():
        for capability in capabilities:
            target = GPUTarget("cuda", capability, 32)
            compiled = triton.compile(ASTSource(kernel, *source), target=target, options=options)
            yield kernel.__name__, capability, next(iter(source[0].values())), compiled


def assert_fit(launches, capabilities, folder, monkeypatch):
    found = set()
    for name, capability, pointer, compiled in compile_all(launches, capabilities, folder, monkeypatch):
        found.add((name, capability))
        assert len(compiled.asm["cubin"]) > 1000
        assert compiled.metadata.shared <= SHARED_MEMORY[capability]
        if name == "convolve_rows" and pointer != "*fp32" and capability in TENSOR_CORES:
            assert TENSOR_CORES[capability] in compiled.asm["ptx"]
        assert not ATOMIC.search(compiled.asm["ptx"])
    return found


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_for_gpus_that_are_not_here(launches, dtype, tmp_path, monkeypatch):
    """Every kernel as a wide layer launches it; for the middle one of the GPUs, other shapes too."""
    launch_all(dtype, 500, 96, 128)
    names = {"convolve_rows", "add_splits", "sum_pairs"}
    found = assert_fit(launches, (80, 90, 100), tmp_path, monkeypatch)
    assert found == {(name, capability) for name in names for capability in (80, 90, 100)}
    launches.clear()
    launch_all(dtype, 20_000, 96, 96)
    launch_all(dtype, 20_000, 3, 32)
    assert_fit(launches, (90,), tmp_path, monkeypatch)


@needs_triton
@pytest.mark.slow
def test_the_largest_tiles_fit_a_small_gpu(launches, tmp_path, monkeypatch):
    launch_all(torch.bfloat16, 20_000, 256, 256)
    launch_all(torch.float32, 20_000, 256, 256)
    assert_fit(launches, (86,), tmp_path, monkeypatch)


@needs_triton
@pytest.mark.slow
def test_three_products_of_tf32_run_on_tensor_cores(launches, tmp_path, monkeypatch):
    monkeypatch.setattr(triton_backend, "precision", lambda dtype: "tf32x3")
    launch_all(torch.float32, 500, 64, 64)
    for name, _, _, compiled in compile_all(launches, (90,), tmp_path, monkeypatch):
        assert name == "add_splits" or "tf32" in compiled.asm["ptx"]


def test_tiles():
    """Channels that exist are not cut up, channels that do not are few, and all are within bounds."""
    for rows in (1, 100, 100_000):
        for dtype in DTYPES:
            for channels in (1, 3, 16, 24, 33, 96, 130, 256):
                for tile in (
                    choose_tile(rows, channels, channels, dtype),
                    choose_gradient_tile(channels, channels, dtype),
                ):
                    sizes = (tile.rows, tile.inputs, tile.outputs)
                    assert all(size in (16, 32, 64, 128) for size in sizes), sizes
                    assert -(-channels // tile.inputs) * tile.inputs <= 1.25 * -(-channels // 16) * 16
    assert choose_tile(100, 96, 96, torch.bfloat16) == Tile(64, 32, 128, 4)
    assert choose_tile(100_000, 256, 256, torch.float16) == Tile(128, 64, 128, 8)
    assert choose_tile(100_000, 96, 96, torch.float32) == Tile(64, 32, 32, 4)


class Noted:
    """In the place of a kernel: the grids of its launches."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *arguments, **named: None


@pytest.mark.parametrize(
    ("rows", "volume", "channels", "splits"),
    [
        # Small grids by the limit, by what is wanted of two blocks a part, by the offsets; large ones not at all.
        (100, 27, 16, 8),
        (64 * 85, 27, 16, 3),
        (64 * 86, 27, 16, 2),
        (64 * 128, 27, 16, 2),
        (64 * 129, 27, 16, 1),
        (64 * 300, 27, 16, 1),
        (100, 8, 16, 4),
        (100, 3, 16, 1),
        (100, 1, 16, 1),
        # Blocks of channels are programs too.
        (64 * 32, 27, 128, 4),
    ],
)
def test_small_grids_are_cut_along_their_offsets(rows, volume, channels, splits, nothing_tried, monkeypatch):
    """Not into more parts than there are pairs of offsets, nor than fill a GPU: each is written and read again."""
    kernels = SimpleNamespace(IS_INTERPRETED=False, convolve_rows=Noted(), add_splits=Noted())
    monkeypatch.setattr(triton_backend, "_kernels", lambda: kernels)
    kernel_map = KernelMap(torch.full((volume, rows), rows, dtype=torch.int32), rows)
    features, kernel = torch.zeros(rows, 16), torch.zeros(volume, 16, channels)
    out = triton_backend.multiply(features, kernel, kernel_map, tile=Tile(64, 16, 64))
    assert out.shape == (rows, channels)
    assert kernels.convolve_rows.grids == [(-(-rows // 64) * -(-channels // 64), splits)]
    assert kernels.add_splits.grids == ([(-(-rows // 32), -(-channels // 64))] if splits > 1 else [])


def test_gradients_of_kernels_are_cut_along_many_pairs_alone():
    """Shares of at least 1,024 pairs, until 512 programs are at work."""
    shares = [triton_backend.choose_shares(rows, 27) for rows in (1, 1023, 2047, 2048, 20_479, 10**6)]
    assert shares == [1, 1, 1, 2, 18, 18]
    assert [triton_backend.choose_shares(10**6, programs) for programs in (1, 256, 257, 512, 5000)] == [
        512,
        2,
        1,
        1,
        1,
    ]


def assert_unavailable(caplog, message):
    """Said once; `triton` asked for by name is an error."""
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(KernelError, match=message):
                choose_backend("triton", "cuda", torch.float32)
    assert [message in record.getMessage() for record in caplog.records] == [True]


def test_without_triton(nothing_tried, monkeypatch, caplog):
    monkeypatch.setattr("bifusion_hf.import_utils.is_available", lambda package: False)
    assert_unavailable(caplog, "needs the optional package 'triton'")


def test_a_machine_on_which_triton_fails(nothing_tried, monkeypatch, caplog):
    def fail():
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(triton_backend, "_kernels", fail)
    assert_unavailable(caplog, "RuntimeError: Failed to find C compiler")


def test_kernels_that_are_wrong(nothing_tried, monkeypatch, caplog):
    """They are compared with `torch` before they are trusted, here on a CPU."""
    monkeypatch.setattr(triton_backend, "_kernels", lambda: SimpleNamespace(IS_INTERPRETED=False))
    monkeypatch.setattr(
        triton_backend, "check_against_torch", lambda function, _, dtypes: check_against_torch(function, "cpu", dtypes)
    )
    monkeypatch.setattr(
        triton_backend,
        "convolve_over",
        lambda features, kernel, maps, finish: torch_backend.convolve_over(features, kernel / 2, maps),
    )
    assert_unavailable(caplog, "the result of a submanifold convolution in torch.float32 is wrong by 5.0e-01")


def test_choice(monkeypatch):
    """`auto` takes triton for what spconv lacks, and where spconv does not work."""

    def set_working(**working):
        for name, works in working.items():
            failure = (lambda: None) if works else (lambda: "does not work")
            changed = dataclasses.replace(backends._BACKENDS[name], failure=failure)
            monkeypatch.setitem(backends._BACKENDS, name, changed)

    def choose():
        return [choose_backend("auto", "cuda", dtype) for dtype in (*DTYPES, torch.float64)]

    set_working(spconv=True, triton=True)
    assert choose() == ["spconv", "spconv", "triton", "torch"]
    assert [choose_backend("triton", "cuda", dtype) for dtype in (torch.float32, torch.float64)] == ["triton", "torch"]
    set_working(spconv=False)
    assert choose() == ["triton", "triton", "triton", "torch"]
    set_working(triton=False)
    assert choose() == ["torch"] * 4
    with pytest.raises(ValueError, match="on cpu; the triton sparse backend works on a CUDA device"):
        choose_backend("triton", "cpu", torch.float32)


@pytest.mark.gpu
def test_on_this_gpu(nothing_tried):
    assert triton_backend.triton_unavailable_reason() is None
