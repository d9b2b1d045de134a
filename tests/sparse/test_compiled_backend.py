import logging
import multiprocessing
import os
import platform
import sys
import time
from pathlib import Path

import pytest
import torch
from built_kernels import skip_where_not_built
from sparse_examples import random_grid, slow_convolution
from torch import nn

from bifusion_hf.io import compiled_library
from bifusion_hf.io.compiled_library import CompiledLibrary, KernelError
from bifusion_hf.sparse import (
    SparseTensor,
    SubmanifoldConv3d,
    TransposedConv3d,
    VoxelBatchNorm,
    VoxelGrid,
    convolve_normalized,
    lines,
    negatives,
    set_sparse_backend,
)
from bifusion_hf.sparse.backends import choose_backend, compiled_backend
from bifusion_hf.sparse.finish import can_finish
from bifusion_hf.sparse.kernel_maps import kernel_offsets
from bifusion_hf.sparse.kernels import KERNELS


def forget():
    KERNELS.forget()
    for reason in (
        compiled_backend.kernels_unavailable_reason,
        lines.kernel_unavailable_reason,
        negatives.kernel_unavailable_reason,
    ):
        reason.cache_clear()


@pytest.fixture
def kernels():
    skip_where_not_built(KERNELS, compiled_backend.kernels_unavailable_reason)


@pytest.fixture
def new_cache(kernels, tmp_path, monkeypatch):
    """An empty cache folder, and nothing tried yet; what is built there is not optimised, which takes seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(KERNELS, "flags", [*KERNELS.flags, "-O0"])
    forget()
    yield tmp_path / "cache" / "bifusion_hf"
    monkeypatch.undo()
    forget()


def compiler(tmp_path, monkeypatch, script):
    path = tmp_path / "compiler"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    monkeypatch.setenv("CC", str(path))


@pytest.mark.parametrize("module", [compiled_backend, lines, negatives])
def test_trials_of_kernels_leave_torchs_generator_alone(kernels, module):
    """They run at the first call, which is not to decide what a seeded run draws."""
    before = torch.get_rng_state()
    (module._test_kernels if module is compiled_backend else module._test_kernel)()
    assert torch.equal(torch.get_rng_state(), before)


def gradients(features, kernel, grid, weights, backend):
    layer = SubmanifoldConv3d(*kernel.shape[1:], 3)
    set_sparse_backend(layer, backend)
    features, kernel = features.clone().requires_grad_(), kernel.clone().requires_grad_()
    out = torch.func.functional_call(layer, {"kernel": kernel}, (SparseTensor(features, grid),)).features
    return [out.detach(), *torch.autograd.grad(out, (features, kernel), weights)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 32, 100])
def test_finished_convolution(kernels, channels, dtype):
    """Normalisation, shortcut and rectifier in the kernel, against the same as layers; in autocast too."""
    torch.manual_seed(0)
    grid = random_grid()
    for kind, convolution in {
        "submanifold": SubmanifoldConv3d(6, channels, 3),
        "pointwise": SubmanifoldConv3d(6, channels, 1),
        "folded": SubmanifoldConv3d(6, channels, 5),
        "transposed": TransposedConv3d(6, channels),
    }.items():
        where = grid.coarser() if kind == "transposed" else grid
        x = SparseTensor(torch.randn(len(where), 6), where)
        shortcut = None if kind == "folded" else torch.randn(len(grid), channels)
        norm = VoxelBatchNorm(channels).eval()
        for value in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(value)
        norm.running_var.uniform_(0.5, 2)
        called = []
        norm.register_forward_pre_hook(lambda _, given, called=called: called.append(given[0] is not None))
        for is_rectified in (True, False):
            for added in (None,) if shortcut is None else (None, shortcut):
                options = added, is_rectified
                wanted = convolve_normalized(convolution, norm, x, *options).features.detach()
                assert called == [True]
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    found = convolve_normalized(convolution, norm, x, *options).features
                assert called == [True, False]  # by the kernel, which asks the layer for scale and shift
                called.clear()
                assert found.dtype == dtype
                tolerance = 3e-6 if dtype == torch.float32 else 2e-2
                assert (found - wanted).abs().max() < tolerance * wanted.abs().max()


def test_what_learns_is_not_finished_by_the_kernel(kernels):
    grid = random_grid()
    convolution, norm = SubmanifoldConv3d(6, 8, 3), VoxelBatchNorm(8)
    x = SparseTensor(torch.randn(len(grid), 6), grid)
    with torch.no_grad():
        assert not can_finish(norm)
        convolve_normalized(convolution, norm, x)
    assert norm.num_batches_tracked == 1
    assert not can_finish(norm.eval())
    convolve_normalized(convolution, norm, x).features.sum().backward()
    assert norm.weight.grad.abs().sum() > 0 and convolution.kernel.grad.abs().sum() > 0
    with torch.no_grad():
        assert can_finish(norm) and not can_finish(nn.LayerNorm(8)) and not can_finish(nn.BatchNorm1d(8).eval())


# Panels of one to four vectors, several panels, columns and channels that fill none.
@pytest.mark.parametrize(
    ("in_channels", "out_channels"), [(1, 1), (3, 16), (7, 20), (32, 32), (24, 48), (33, 65), (40, 96), (130, 100)]
)
def test_every_shape(kernels, in_channels, out_channels):
    """Against the slow convolution in float64; more blocks of rows than one, the last one not full."""
    grid = random_grid(count=400, low=-4, high=5)
    assert len(grid) > 2 * compiled_backend.MIN_BLOCK_ROWS
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(grid), in_channels, generator=generator)
    kernel = torch.randn(27, in_channels, out_channels, generator=generator)
    weights = torch.randn(len(grid), out_channels, generator=generator)
    for dtype, tolerance in ((torch.float32, 3e-6), (torch.bfloat16, 1e-2)):
        values = [value.to(dtype) for value in (features, kernel, weights)]
        doubles = [value.double() for value in values]
        found = gradients(*values[:2], grid, values[2], "compiled")
        leaves = [value.requires_grad_() for value in doubles[:2]]
        out = slow_convolution(grid.coordinates, *leaves, kernel_offsets(3), grid.coordinates)
        wanted = [out.detach(), *torch.autograd.grad(out, leaves, doubles[2])]
        for mine, slow in zip(found, wanted, strict=True):
            assert mine.dtype == dtype
            assert (mine.double() - slow).abs().max() < tolerance * slow.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(kernels, dtype):
    grid = random_grid(count=3000, low=-8, high=8)
    generator = torch.Generator().manual_seed(0)
    shapes = (len(grid), 36), (27, 36, 72), (len(grid), 72)
    features, kernel, weights = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            fresh = VoxelGrid(grid.coordinates, 2)
            results.append(gradients(features, kernel, fresh, weights, "compiled"))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)


def misaligned(value):
    """The same values one element behind a boundary: no vector load of them is aligned."""
    moved = torch.empty(value.numel() + 1, dtype=value.dtype)[1:].view(value.shape)
    assert moved.data_ptr() % 16 == value.element_size() or not value.numel()
    return moved.copy_(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 513), (513, 1), (3, 97), (97, 3), (7, 17), (17, 7)])
@pytest.mark.parametrize("voxels", [0, 1, 2, 70])
def test_odd_channels_few_voxels_and_misaligned_rows(kernels, voxels, in_channels, out_channels, dtype):
    """Without any voxel, with one row, with a row in a second block: the same as torch, by two threads."""
    grid = VoxelGrid(random_grid(count=400, low=-2, high=3, samples=1).coordinates[:voxels], 1)
    generator = torch.Generator().manual_seed(0)
    shapes = (voxels, in_channels), (27, in_channels, out_channels), (voxels, out_channels)
    values = [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        features, kernel, weights = map(misaligned, values)
        found = gradients(features, kernel, grid, weights, "compiled")
    finally:
        torch.set_num_threads(threads)
    features, kernel, weights = (value.float() for value in values)
    wanted = gradients(features, kernel, VoxelGrid(grid.coordinates, 1), weights, "torch")
    # Sums of so many terms may cancel: their rounding is that of the terms.
    rounding = 3e-6 * max(in_channels, out_channels) ** 0.5 if dtype == torch.float32 else 1e-2
    for mine, other in zip(found, wanted, strict=True):
        assert mine.shape == other.shape and mine.dtype == dtype
        scale = max(1.0, *other.abs().flatten().tolist()) if other.numel() else 1.0
        assert ((mine.float() - other).abs() <= rounding * scale).all()


def convolve_and_send(connection, features, kernel, grid):
    maps = grid.kernel_maps("submanifold", 3)
    with torch.no_grad():
        connection.send(compiled_backend.convolve_over(features, kernel, maps).numpy())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads(kernels):
    # Its maps are made before the fork: torch itself waits for ever in such a child where it takes more threads.
    grid = random_grid(count=900)
    generator = torch.Generator().manual_seed(0)
    features, kernel = torch.randn(len(grid), 17, generator=generator), torch.randn(27, 17, 7, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=convolve_and_send, args=(theirs, features, kernel, grid))
    try:
        expected = gradients(features, kernel, grid, torch.ones(len(grid), 7), "compiled")[0]
        child.start()
        assert ours.poll(120), "the child hangs"
        assert torch.equal(torch.from_numpy(ours.recv()), expected)
        child.join(60)
    finally:
        torch.set_num_threads(threads)
        if child.is_alive():
            child.kill()


def test_rows_that_are_not_contiguous(kernels):
    grid = random_grid()
    generator = torch.Generator().manual_seed(0)
    features, kernel = torch.randn(5, len(grid), generator=generator).T, torch.randn(27, 9, 5, generator=generator)
    weights = torch.ones(1, 1).expand(len(grid), 9)
    found = gradients(features, kernel.transpose(1, 2), grid, weights, "compiled")
    wanted = gradients(features.contiguous(), kernel.transpose(1, 2).contiguous(), grid, weights, "torch")
    for mine, other in zip(found, wanted, strict=True):
        assert (mine - other).abs().max() < 3e-6 * other.abs().max()


def test_not_a_number_stays_where_it_is(kernels):
    """It reaches its voxel's neighbours, and no other."""
    grid = random_grid()
    features = torch.ones(len(grid), 4)
    features[7] = float("nan")
    maps = grid.kernel_maps("submanifold", 3)
    reached = (maps.forward.table == 7).any(0)
    for dtype in (torch.float32, torch.bfloat16):
        layer = SubmanifoldConv3d(4, 20, 3).to(dtype)
        set_sparse_backend(layer, "compiled")
        out = layer(SparseTensor(features.to(dtype), grid)).features
        assert torch.equal(out.isnan().all(1), reached) and torch.equal(out.isnan().any(1), reached)


def test_auto_takes_the_kernels_for_their_dtypes(kernels):
    for dtype in (torch.float32, torch.bfloat16):
        assert choose_backend("auto", "cpu", dtype) == choose_backend("compiled", "cpu", dtype) == "compiled"
    for dtype in (torch.float64, torch.float16):
        assert choose_backend("auto", "cpu", dtype) == choose_backend("compiled", "cpu", dtype) == "torch"
    assert choose_backend("auto", "meta", torch.float32) == "torch"
    with pytest.raises(ValueError, match="on cuda; the compiled sparse backend works on a CPU"):
        choose_backend("compiled", "cuda", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_go_to_torch(kernels, dtype):
    grid = random_grid()
    layer, x = SubmanifoldConv3d(4, 6, 3).to(dtype), SparseTensor(torch.ones(len(grid), 4, dtype=dtype), grid)
    results = []
    for backend in ("torch", "compiled"):
        set_sparse_backend(layer, backend)
        results.append(layer(x).features)
    assert results[1].dtype == dtype and torch.equal(*results)


def assert_falls_back(caplog, message):
    """`auto` goes on with torch, and says why once; `compiled` is an error."""
    grid = random_grid()
    layer, x = SubmanifoldConv3d(4, 6, 3), SparseTensor(torch.ones(200, 4)[: len(grid)], grid)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert choose_backend("auto", "cpu", torch.float32) == "torch"
        auto = layer(x).features
    assert [message in record.getMessage() for record in caplog.records] == [True]
    set_sparse_backend(layer, "torch")
    assert torch.equal(layer(x).features, auto)
    set_sparse_backend(layer, "compiled")
    with pytest.raises(KernelError, match=message):
        layer(x)


def test_without_a_compiler(new_cache, monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert_falls_back(caplog, "no-such-compiler")


def test_a_compiler_that_fails(new_cache, tmp_path, monkeypatch, caplog):
    compiler(tmp_path, monkeypatch, "echo no vectors today >&2; exit 3")
    assert_falls_back(caplog, "no vectors today")
    assert list(new_cache.iterdir()) == []


def test_a_compiler_that_makes_no_library(new_cache, tmp_path, monkeypatch, caplog):
    compiler(tmp_path, monkeypatch, 'for last; do :; done; echo nonsense > "$last"')
    assert_falls_back(caplog, "cannot be built")
    assert list(new_cache.iterdir()) == []


def test_a_compiler_that_makes_a_wrong_library(new_cache, tmp_path, monkeypatch, caplog):
    """Every function is there, and convolves nothing."""
    wrong = tmp_path / "wrong.c"
    wrong.write_text(KERNELS.sources[0].read_text().replace("return sum + *unit * weights;", "return sum;"))
    headers = KERNELS.sources[0].parent
    compiler(tmp_path, monkeypatch, f'exec cc -I{headers} $(echo "$@" | sed "s#{KERNELS.sources[0]}#{wrong}#")')
    assert_falls_back(caplog, "are wrong by")


def test_switched_off(new_cache, monkeypatch, caplog):
    monkeypatch.setenv(compiled_library.SWITCH, "0")
    assert_falls_back(caplog, "switched off by BIFUSION_SPARSE_KERNEL=0")
    assert not new_cache.exists()


def test_an_unwritable_cache(new_cache, caplog):
    new_cache.parent.write_text("a file where the folder should be")
    assert_falls_back(caplog, "cannot be built")


def test_the_first_call_may_come_from_within_inference(kernels):
    forget()
    with torch.inference_mode():
        assert compiled_backend.kernels_unavailable_reason() is None


def test_built_once(new_cache, monkeypatch):
    assert compiled_backend.kernels_unavailable_reason() is None
    (library,) = new_cache.iterdir()
    assert library == KERNELS.path
    made = library.stat().st_mtime_ns
    forget()
    monkeypatch.setattr(KERNELS, "build", lambda path: pytest.fail("built again"))
    assert compiled_backend.kernels_unavailable_reason() is None
    assert library.stat().st_mtime_ns == made


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")
def test_a_library_that_someone_else_could_have_put_there(new_cache, tmp_path, monkeypatch, caplog):
    assert compiled_backend.kernels_unavailable_reason() is None
    library = KERNELS.path
    loaded = []
    monkeypatch.setattr(compiled_library.ctypes, "CDLL", lambda path: loaded.append(path))
    new_cache.chmod(0o777)
    forget()
    caplog.clear()
    assert_falls_back(caplog, "drwxrwxrwx; expected")
    new_cache.chmod(0o700)
    library.chmod(0o664)
    forget()
    caplog.clear()
    assert_falls_back(caplog, "-rw-rw-r--; expected")
    other = tmp_path / "other.so"
    library.rename(other)
    library.symlink_to(other)
    forget()
    caplog.clear()
    assert_falls_back(caplog, "no link, and nobody else")
    library.unlink()
    other.rename(library)
    library.chmod(0o600)
    forget()
    caplog.clear()
    monkeypatch.setattr(compiled_library.os, "getuid", lambda: 12345)
    assert_falls_back(caplog, "expected owner 12345")
    assert loaded == []


def test_another_source_or_processor_has_its_own_library(new_cache, tmp_path, monkeypatch):
    paths = {KERNELS.path}
    monkeypatch.setattr(compiled_library, "processor", lambda: "another")
    paths.add(KERNELS.path)
    changed = tmp_path / "kernels.c"
    changed.write_text(KERNELS.sources[0].read_text() + "\n")
    monkeypatch.setattr(KERNELS, "sources", [changed])
    paths.add(KERNELS.path)
    assert len(paths) == 3


def test_processes_that_build_at_once(new_cache, tmp_path, monkeypatch):
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    library = CompiledLibrary("answers", [source], ["-shared", "-fPIC"], {"answer": (compiled_library.FLAG, [])})
    # Each compiler has written a part of its library when the last process begins, and all end together.
    started, go = tmp_path / "started", tmp_path / "go"
    started.mkdir()
    wait = f'touch "{started}/$$"; while [ ! -e "{go}" ]; do sleep 0.02; done'
    compiler(tmp_path, monkeypatch, f'for last; do :; done; echo a part > "$last"; {wait}; exec cc "$@"')
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=lambda: sys.exit(library.call("answer"))) for _ in range(3)]
    for count, process in enumerate(processes, 1):
        process.start()
        while len(list(started.iterdir())) < count and process.is_alive():
            time.sleep(0.02)
    go.touch()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [42, 42, 42]
    assert list(new_cache.iterdir()) == [library.path]


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64's levels")
@pytest.mark.parametrize(
    ("architecture", "needs"), [("x86-64", []), ("x86-64-v3", ["avx2", "fma"]), ("x86-64-v4", ["avx512f", "avx512bw"])]
)
def test_narrower_vectors(new_cache, monkeypatch, architecture, needs):
    """The widths of other processors, without bfloat16 products, are as right."""
    information = Path("/proc/cpuinfo")
    flags = information.read_text().split() if information.exists() else []
    if not set(needs) <= set(flags):
        pytest.skip(f"this processor lacks one of {', '.join(needs)}")
    *flags, _ = KERNELS.flags  # optimised, as they are for users
    changed = [f"-march={architecture}" if flag.startswith("-march") else flag for flag in flags]
    monkeypatch.setattr(KERNELS, "flags", changed)
    assert compiled_backend.kernels_unavailable_reason() is None
    assert not KERNELS.call("has_bfloat16")
    for channels in ((5, 7), (40, 96), (33, 65)):
        test_every_shape(None, *channels)


def test_tiles_give_what_vectors_give(new_cache, monkeypatch):
    if not KERNELS.call("has_tiles"):
        pytest.skip("needs a processor with tiles (AMX)")
    grid = random_grid(count=400, low=-4, high=5)
    found = {True: [], False: []}
    for has_tiles, results in found.items():
        if not has_tiles:
            monkeypatch.setattr(KERNELS, "flags", [*KERNELS.flags, "-mno-amx-tile"])
            forget()
        assert KERNELS.call("has_bfloat16") and KERNELS.call("has_tiles") == has_tiles
        generator = torch.Generator().manual_seed(0)
        # Units of one tile and less, of several chunks, and of a number that has no equal parts.
        for channels in ((2, 1), (24, 16), (32, 20), (48, 96), (66, 64), (68, 40), (128, 130)):
            features, weights = (
                torch.randn(len(grid), count, generator=generator).bfloat16().requires_grad_() for count in channels
            )
            layer = SubmanifoldConv3d(*channels, 3).bfloat16()
            with torch.no_grad():
                layer.kernel.normal_(generator=generator)
            out = layer(SparseTensor(features, grid)).features
            results += [out.detach(), *torch.autograd.grad(out, (features, layer.kernel), weights)]
    for by_tiles, by_vectors in zip(*found.values(), strict=True):
        # Both round sums of float32 once, which may differ in their last bits.
        assert (by_tiles != by_vectors).float().mean() < 0.05
        assert (by_tiles - by_vectors).abs().max() < 0.01 * by_vectors.abs().max()


@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_leave_those_of_other_libraries_as_they_were(kernels, threads):
    """oneDNN shapes a thread's tiles once for several products, and would not notice other shapes."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        grid = random_grid(count=400, low=-4, high=5)
        layer = SubmanifoldConv3d(24, 24, 3).bfloat16()
        features = SparseTensor(torch.randn(len(grid), 24).bfloat16(), grid)
        left, right = torch.randn(200, 48).bfloat16(), torch.randn(48, 80).bfloat16()
        with torch.no_grad():
            product, convolved = left @ right, layer(features).features
            for _ in range(5):
                assert torch.equal(left @ right, product)
                assert torch.equal(layer(features).features, convolved)
    finally:
        torch.set_num_threads(before)


def test_one_pool_of_threads(kernels):
    """The library shares the OpenMP runtime that torch has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux")
    runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if "/libgomp" in line}
    assert len(runtimes) == 1
