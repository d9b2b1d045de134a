"""Sparse convolution on the device: determinism, time and memory of a U-Net by each backend, our tiles in Triton."""

import contextlib
import copy
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bifusion_hf.configuration_bifusion import BiFusionPointConfig
from bifusion_hf.import_utils import is_available
from bifusion_hf.layers.point_encoder import Res16UNet
from bifusion_hf.sparse import VoxelGrid, set_sparse_backend, working_backends
from bifusion_hf.sparse.backends import spconv_backend, triton_backend

from ..benchmarks.spconv_baseline import spconv_twin
from ..benchmarks.voxel_scenes import depth_camera_voxels
from .running import Note
from .settings import DTYPES, Settings, median_ms, peak_mb


# Beside the backends themselves: a package with spconv's interface in the place of the one that would be taken, and
# spconv's own layers and tensors throughout.
FORCED = {"spconv-triton": "spconv_triton"}
PLAIN = "spconv, plain"


def contenders(device: str) -> list[str]:
    """Who computes: the backends that work here, and the other forms of spconv where there are any."""
    names = [name for name, reason in working_backends(device).items() if reason is None]
    if device == "cuda":
        names += [name for name, package in FORCED.items() if is_available(package)]
        names += [PLAIN] * is_available("spconv")
    return names


def has(name: str, dtype: torch.dtype) -> bool:
    """Whether a contender computes in this dtype itself; others would leave it to `torch`."""
    if name.startswith("spconv"):
        return dtype in spconv_backend.DTYPES
    return name != "compiled" or dtype != torch.float16


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """The package that a contender names in the place of the one that spconv's backend would take."""
    before = spconv_backend._package_for
    if name in FORCED:
        spconv_backend._package_for = lambda device: FORCED[name]
    try:
        yield
    finally:
        spconv_backend._package_for = before


class Scene:
    """Voxels of depth cameras with random features, and a Res16UNet34C in evaluation mode for them.

    Args:
        voxels: How many.
        settings: Where, and which network.
    """

    def __init__(self, voxels: int, settings: Settings):
        torch.manual_seed(0)
        coordinates, self.batch_size = depth_camera_voxels(voxels)
        self.coordinates = coordinates.to(settings.device)
        self.features = torch.randn(voxels, 3, device=settings.device)
        self.network = Res16UNet(BiFusionPointConfig(**settings.point_config)).to(settings.device)

    def grid(self) -> VoxelGrid:
        """A new one, whose maps are made anew."""
        return VoxelGrid(self.coordinates, self.batch_size)

    def network_of(self, name: str) -> nn.Module:
        """The network as a contender has it, with the same weights."""
        if name == PLAIN:
            return spconv_twin(self.network)
        network = copy.deepcopy(self.network)
        set_sparse_backend(network, "spconv" if name in FORCED else name)
        return network

    def forward(self, network: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        """Evaluation with weights of the dtype, maps included."""
        with torch.no_grad():
            return network.eval()(self.features.to(dtype), self.grid())

    def update(self, network: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
        """Forward and backward of training as the trainer computes them: float32 weights, autocast below."""
        device = self.features.device.type
        network.train().zero_grad()
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            out = network(self.features, self.grid())
        out.float().square().mean().backward()
        return [out.detach(), *(parameter.grad for parameter in network.parameters())]


def determinism(settings: Settings, note: Note) -> None:
    """Whether two runs of forward and backward give the same bits, by backend and dtype; ours have to."""
    scene, wrong = Scene(settings.determinism_voxels, settings), []
    for name in contenders(settings.device):
        for label in settings.dtypes:
            if not has(name, DTYPES[label]):
                continue
            same = {}
            for is_asked in (False, True):
                torch.use_deterministic_algorithms(is_asked)
                try:
                    same["deterministic" if is_asked else "plain"] = _is_same_twice(scene, name, DTYPES[label])
                except RuntimeError as error:
                    same["deterministic"] = str(error).splitlines()[0][:200]
                finally:
                    torch.use_deterministic_algorithms(False)
            note(f"{name}, {label}", same)
            if name in ("torch", "compiled", "triton") and not all(value is True for value in same.values()):
                wrong.append(f"{name} in {label}")
    if wrong:
        raise RuntimeError(f"not the same bits twice: {', '.join(wrong)}")


def _is_same_twice(scene: Scene, name: str, dtype: torch.dtype) -> bool:
    with forced(name):
        runs = [scene.update(scene.network_of(name), dtype) for _ in range(2)]
    return all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def unet(settings: Settings, note: Note) -> None:
    """Milliseconds and memory of a Res16UNet34C, forward and forward + backward, and how far it is from torch's."""
    failed = []
    for voxels in settings.voxels:
        scene = Scene(voxels, settings)
        wanted = scene.forward(scene.network_of("torch"), torch.float32)
        for label in settings.dtypes:
            for name in contenders(settings.device):
                if not has(name, DTYPES[label]):
                    continue
                try:
                    found = measure(scene, name, DTYPES[label], wanted, settings)
                except RuntimeError as error:
                    found = str(error).splitlines()[0][:300]
                    failed.append(f"{name} in {label}")
                note(f"{voxels}, {label}, {name}", found)
                _free(settings)
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def measure(
    scene: Scene, name: str, dtype: torch.dtype, wanted: torch.Tensor, settings: Settings
) -> dict[str, float | None]:
    """One contender's numbers."""
    with forced(name):
        network = scene.network_of(name).to(dtype)
        difference = scene.forward(network, dtype).float() - wanted
        found = {
            "forward_ms": median_ms(lambda: scene.forward(network, dtype), settings),
            "forward_mb": peak_mb(lambda: scene.forward(network, dtype), settings),
            "rms_difference": float(difference.square().mean().sqrt() / wanted.square().mean().sqrt()),
        }
        network = scene.network_of(name)
        found["update_ms"] = median_ms(lambda: scene.update(network, dtype), settings)
        found["update_mb"] = peak_mb(lambda: scene.update(network, dtype), settings)
    return found


def large(settings: Settings, note: Note) -> None:
    """The largest grid, once forward and backward, by each backend in half precision."""
    scene = Scene(settings.large_voxels, settings)
    for name in contenders(settings.device):
        dtype = torch.float16 if name.startswith("spconv") else torch.bfloat16
        note(name, update_of(scene, name, dtype, settings))
        _free(settings)


def update_of(scene: Scene, name: str, dtype: torch.dtype, settings: Settings) -> dict[str, Any]:
    """Memory of a contender's update, and whether its gradients are finite."""
    with forced(name):
        network = scene.network_of(name)
        memory = peak_mb(lambda: scene.update(network, dtype), settings)
    is_finite = all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())
    return {"dtype": str(dtype), "update_mb": memory, "is_finite": is_finite}


def tiles(settings: Settings, note: Note) -> None:
    """Milliseconds of one 3x3x3 layer by Triton with other tiles than the chosen ones."""
    if settings.is_rehearsal or triton_backend.triton_unavailable_reason():
        note("triton", "does not work here")
        return
    base = triton_backend.Tile(128, 64, 128, 8, 3)
    others = [{"rows": 64}, {"inputs": 32}, {"outputs": 64}, {"warps": 4}, {"stages": 2}, {"stages": 4}]
    for label in ("bfloat16", "float32"):
        for change in ({}, *others):
            tile = triton_backend.Tile(**{**vars(base), **change})
            for voxels, channels in ((50_000, 96), (50_000, 32), (12_000, 128), (3_000, 256)):
                name = f"{label}, {voxels} x {channels}, {'-'.join(map(str, vars(tile).values()))}"
                try:
                    note(name, layer_ms(voxels, channels, DTYPES[label], tile, settings))
                # Too much shared memory, say.
                except Exception as error:
                    note(name, f"{type(error).__name__}: {error}"[:200])
        for voxels, channels in ((50_000, 96), (50_000, 32), (12_000, 128), (3_000, 256)):
            note(f"{label}, {voxels} x {channels}, chosen", layer_ms(voxels, channels, DTYPES[label], None, settings))


def layer_ms(
    voxels: int, channels: int, dtype: torch.dtype, tile: triton_backend.Tile | None, settings: Settings
) -> float:
    """One layer's product with a tile, its maps made beforehand."""
    coordinates, batch_size = depth_camera_voxels(voxels)
    kernel_map = VoxelGrid(coordinates.to(settings.device), batch_size).kernel_maps("submanifold", 3).forward
    features = torch.randn(voxels, channels, device=settings.device, dtype=dtype)
    kernel = torch.randn(27, channels, channels, device=settings.device, dtype=dtype)
    return median_ms(lambda: triton_backend.multiply(features, kernel, kernel_map, tile=tile), settings)


def _free(settings: Settings) -> None:
    gc.collect()
    if not settings.is_rehearsal:
        torch.cuda.empty_cache()
