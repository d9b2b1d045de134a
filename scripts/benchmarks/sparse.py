"""Sparse convolutions and the whole Res16UNet34C, against spconv, dense matrix products, and their own growth.

The contenders take turns in one run, so that other load on the machine meets all alike; times are medians. Work is
counted on real pairs of voxels (2 x pairs x Cin x Cout), not on padding. The compiled kernels take part where they can
be built, spconv where a spconv-cuXXX wheel is installed, on a CPU with its Native algorithm.
"""

import argparse
import copy
import gc
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bifusion_hf.configuration_bifusion import BiFusionPointConfig
from bifusion_hf.import_utils import is_available
from bifusion_hf.layers.point_encoder import Res16UNet
from bifusion_hf.sparse import (
    SparseTensor,
    SubmanifoldConv3d,
    VoxelGrid,
    kernels_unavailable_reason,
    set_sparse_backend,
)
from bifusion_hf.sparse.backends.compiled_backend import PairLists
from bifusion_hf.sparse.backends.products import multiply, onednn_products_work
from bifusion_hf.sparse.kernel_maps import KernelMap

from .parameters import update_file
from .sparse_tables import format_tables
from .spconv_baseline import (
    SpconvFeatures,
    first_tensor,
    replacement,
    spconv_twin,
)
from .voxel_scenes import depth_camera_voxels


Contender = Callable[[], Any]
# Sets with more voxels take about half as many turns.
MANY_VOXELS = 50_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `benchmark.py sparse`."""
    parser.add_argument("--layer_voxels", type=int, nargs="*", default=[20_000, 50_000, 150_000])
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 96, 128])
    parser.add_argument("--backbone_voxels", type=int, nargs="*", default=[10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--memory_voxels", type=int, default=50_000)
    parser.add_argument(
        "--repeats", type=int, default=5, help=f"turns of each contender; beyond {MANY_VOXELS} voxels about half"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--product_size", type=int, help="edge of the dense products (default: 2048, 8192 on a GPU)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the result there as JSON")
    parser.add_argument("--update", type=Path, nargs="+", default=(), metavar="FILE", help="fill in the tables there")
    parser.add_argument("--result", type=Path, metavar="JSON", help="measure nothing, take this earlier result")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the benchmark, prints it, and writes it and its tables where `--output` and `--update` say."""
    result = measure(args) if args.result is None else json.loads(args.result.read_text())
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    for path in args.update:
        update_file(path, "sparse", format_tables(result))
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures and prints: the machine, layers, backbone, growth and memory."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    begin = time.perf_counter()
    result = {"machine": describe_machine(args), "contenders": contender_names(args.device)}
    result.update(layers=[], backbone=[])
    print(json.dumps(result["machine"], indent=1))
    for voxels in args.layer_voxels:
        for channels in args.channels:
            result["layers"].append(time_layer(voxels, channels, args))
            print_times(f"3x3x3, {voxels} voxels, {channels} channels", result["layers"][-1])
    for voxels in args.backbone_voxels:
        result["backbone"].append(time_backbone(voxels, args))
        print_times(f"Res16UNet34C, {voxels} voxels, maps included", result["backbone"][-1])
    if args.backbone_voxels:
        result["growth"] = growth(result["backbone"], result["contenders"][0])
        print(f"\n{'forward + maps, microseconds a voxel':40}", result["growth"])
    if args.memory_voxels and Path("/proc/self/clear_refs").exists() and args.device == "cpu":
        result.update(memory_voxels=args.memory_voxels, memory_mb=measure_memory(args))
        print(f"\npeak growth above the loaded model at {args.memory_voxels} voxels, MB: {result['memory_mb']}")
    result["load_average_at_end"] = os.getloadavg()[0]
    result["minutes"] = round((time.perf_counter() - begin) / 60, 1)
    return result


def our_backends(device: str) -> list[str]:
    """Our own backends that work on this device, the fastest first."""
    compiled = not device.startswith("cuda") and kernels_unavailable_reason() is None
    return ["compiled"] * compiled + ["torch"]


def contender_names(device: str) -> list[str]:
    """Who takes part; the first is what others are compared with."""
    first, *others = our_backends(device)
    return [first, f"{first} bfloat16", *others] + ["spconv"] * is_available("spconv")


def turns(voxels: int, args: argparse.Namespace) -> int:
    """How often each contender has its turn on so many voxels."""
    return args.repeats if voxels <= MANY_VOXELS else args.repeats // 2 + 1


def describe_machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the times depend on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    spconv = [d for d in metadata.distributions() if (d.metadata["Name"] or "").startswith("spconv")]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "torch": torch.__version__,
        "spconv": f"{spconv[0].metadata['Name']} {spconv[0].version}" if spconv else None,
        "repeats": args.repeats,
        "load_average_at_start": os.getloadavg()[0],
    }


def take_turns(contenders: dict[str, Contender], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Times of contenders that take turns: milliseconds, median, smallest and largest of `repeats` turns each."""

    def once(contender: Contender) -> float:
        begin = time.perf_counter()
        contender()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begin)

    for contender in contenders.values():
        once(contender)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            times[name].append(once(contender))
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in times.items()
    }


def products(device: str, size: int | None) -> tuple[dict[str, Contender], float]:
    """Dense products that show the machine's peak, and the GFLOP of each."""
    size = size or (2048 if device == "cpu" else 8192)
    a, b = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    contenders = {"torch.mm": lambda: torch.mm(a, b), "torch.mm bfloat16": lambda: torch.mm(half_a, half_b)}
    if device == "cpu" and onednn_products_work():
        contenders["oneDNN product"] = lambda: multiply(a, b)
    return contenders, 2 * size**3 / 1e9


def time_layer(voxels: int, channels: int, args: argparse.Namespace) -> dict[str, Any]:
    """One 3x3x3 layer with its maps made beforehand, and the dense products."""
    coordinates, batch_size = depth_camera_voxels(voxels)
    grid = VoxelGrid(coordinates.to(args.device), batch_size)
    features = torch.randn(voxels, channels, device=args.device)
    layer = SubmanifoldConv3d(channels, channels, 3).to(args.device)
    x = SparseTensor(features, grid)
    pairs = grid.kernel_maps("submanifold", 3).forward.num_pairs
    layers = {}
    for name in contender_names(args.device):
        if name == "spconv":
            layers[name] = _spconv_layer(layer, x)
        else:
            module = _variant(layer, name)
            layers[name] = module, x.replace(features.to(module.kernel.dtype))
    contenders: dict[str, Contender] = {}
    for name, (module, tensor) in layers.items():
        contenders[f"{name}, forward"] = lambda module=module, tensor=tensor: _forward(module, tensor)
        contenders[f"{name}, forward + backward"] = lambda module=module, tensor=tensor: _forward_backward(
            module, tensor
        )
    dense, dense_work = products(args.device, args.product_size)
    times = take_turns(contenders | dense, turns(voxels, args), args.device)
    work = 2 * pairs * channels * channels / 1e9
    row = {"voxels": voxels, "channels": channels, "neighbours": pairs / voxels, "milliseconds": times}
    row["gflop_per_second"] = {
        name: (dense_work if name in dense else 3 * work if "backward" in name else work) / (1e-3 * value["median"])
        for name, value in times.items()
    }
    return row


def time_backbone(voxels: int, args: argparse.Namespace) -> dict[str, Any]:
    """The whole backbone from coordinates to features, kernel maps included."""
    coordinates, batch_size = depth_camera_voxels(voxels)
    coordinates = coordinates.to(args.device)
    features = torch.randn(voxels, 3, device=args.device)
    network = normalised_backbone(features, VoxelGrid(coordinates, batch_size))
    names = contender_names(args.device)
    networks = {name: spconv_twin(network) if name == "spconv" else _variant(network, name) for name in names}
    contenders: dict[str, Contender] = {}

    def inference(module: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return module.eval()(features.to(module.stem_norm.weight.dtype), VoxelGrid(coordinates, batch_size))

    def training(module: nn.Module) -> None:
        module.train().zero_grad()
        module(features.to(module.stem_norm.weight.dtype), VoxelGrid(coordinates, batch_size)).sum().backward()

    for name, module in networks.items():
        contenders[f"{name}, forward"] = lambda module=module: inference(module)
    first = inference(networks[names[0]])
    scale = first.abs().max()
    errors = {}
    for name, module in list(networks.items())[1:]:
        difference = (inference(module).float() - first) / scale
        errors[name] = {"largest": float(difference.abs().max()), "rms": float(difference.square().mean().sqrt())}
    for name, module in networks.items():
        contenders[f"{name}, forward + backward"] = lambda module=module: training(module)
    contenders["maps alone"] = lambda: build_maps(VoxelGrid(coordinates, batch_size), names[0])
    times = take_turns(contenders, turns(voxels, args), args.device)
    return {"voxels": voxels, "milliseconds": times, "difference_from_first_by_largest_value": errors}


def normalised_backbone(features: torch.Tensor, grid: VoxelGrid) -> Res16UNet:
    """A Res16UNet34C whose batch norms have the statistics of this input, so that activations are of order 1."""
    network = Res16UNet(BiFusionPointConfig()).to(features.device)
    set_sparse_backend(network, our_backends(features.device.type)[0])
    momenta = {}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            momenta[module], module.momentum = module.momentum, 1.0
    with torch.no_grad():
        network(features, grid)
    for module, momentum in momenta.items():
        module.momentum = momentum
    return network


def build_maps(grid: VoxelGrid, backend: str) -> None:
    """The kernel maps of a Res16UNet's levels, and what a backend makes of them."""

    def derive(kernel_map: KernelMap, parts: int) -> None:
        if backend == "compiled":
            PairLists.of(kernel_map)
        else:
            kernel_map.plan(parts)

    for level in range(5):
        derive(grid.kernel_maps("submanifold", 3).forward, 3)
        if level < 4:
            halving = grid.kernel_maps("strided", 2)
            derive(halving.forward, 1)
            derive(halving.backward, 1)
            grid = grid.coarser()


def growth(rows: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Microseconds a voxel of a contender's forward, by number of voxels; constant = linear."""
    return {
        row["voxels"]: round(1e3 * row["milliseconds"][f"{name}, forward"]["median"] / row["voxels"], 2)
        for row in rows
    }


def measure_memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak growth above the loaded model, each case in a process of its own, MB."""
    context = multiprocessing.get_context("spawn")
    result = {}
    for name in [our_backends(args.device)[0]] + ["spconv"] * is_available("spconv"):
        for with_graph in (False, True):
            with context.Pool(1) as pool:
                grown = pool.apply(_memory_growth, (name, with_graph, args.memory_voxels, args.threads))
            result[f"{name}, {'forward + backward' if with_graph else 'forward'}"] = round(grown, 1)
    return result


def _memory_growth(name: str, with_graph: bool, voxels: int, threads: int) -> float:
    torch.set_num_threads(threads)
    coordinates, batch_size = depth_camera_voxels(voxels)
    features = torch.randn(voxels, 3)
    network = Res16UNet(BiFusionPointConfig())
    # No copy of ours: what it leaves behind would be used again, and not be counted.
    if name == "spconv":
        network = spconv_twin(network)
    else:
        set_sparse_backend(network, name)
    # Libraries load, and the parameters' gradients exist, as they do in any step but the first.
    few = coordinates[:500]
    network(features[:500], VoxelGrid(few, batch_size)).sum().backward()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory_status("VmRSS")
    if with_graph:
        network(features, VoxelGrid(coordinates, batch_size)).sum().backward()
    else:
        with torch.no_grad():
            network.eval()(features, VoxelGrid(coordinates, batch_size))
    return _memory_status("VmHWM") - before


def _memory_status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) / 1e3


def _forward(module: nn.Module, x: SparseTensor | SpconvFeatures) -> None:
    with torch.no_grad():
        module(x)


def _forward_backward(module: nn.Module, x: SparseTensor | SpconvFeatures) -> None:
    module.zero_grad()
    features = x.features.detach().requires_grad_()
    module(x.replace(features)).features.sum().backward()


def _variant(module: nn.Module, name: str) -> nn.Module:
    """A copy that computes with our backend of this name, in bfloat16 where the name says so."""
    backend, _, precision = name.partition(" ")
    copied = copy.deepcopy(module)
    set_sparse_backend(copied, backend)
    return copied.bfloat16() if precision else copied


def _spconv_layer(layer: SubmanifoldConv3d, x: SparseTensor) -> tuple[nn.Module, SpconvFeatures]:
    """spconv's form of one layer, and its input with the pairs found."""
    module = replacement(layer, 1)
    first = module(SpconvFeatures(first_tensor(x)))
    return module, first.replace(x.features)


def print_times(title: str, row: dict[str, Any]) -> None:
    """One table: medians, and how they relate to the first contender's."""
    print(f"\n{title}" + (f", {row['neighbours']:.1f} of 27 neighbours" if "neighbours" in row else ""))
    times = row["milliseconds"]
    first = next(iter(times)).partition(",")[0]
    for name, value in times.items():
        reference = times.get(f"{first}, {name.rpartition(', ')[2]}")
        ratio = f"{value['median'] / reference['median']:6.2f} x {first}" if reference else ""
        rate = f"{row['gflop_per_second'][name]:7.0f} GFLOP/s" if "gflop_per_second" in row else ""
        print(f"  {name:36}{value['median']:9.1f} ms ({value['min']:.1f} to {value['max']:.1f}) {rate} {ratio}")
    for name, error in row.get("difference_from_first_by_largest_value", {}).items():
        print(f"  {name}: differs by {error['largest']:.1e} of the largest value, rms {error['rms']:.1e}")
