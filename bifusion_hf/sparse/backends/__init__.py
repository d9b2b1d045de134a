"""What computes a sparse convolution.

`torch` runs everywhere that torch does. `compiled` is for CPUs, and needs a C compiler on first use. `spconv` needs
the package of that name, or `spconv_triton`, and is made for CUDA devices, as is `triton`: kernels of our own that
Triton, which comes with torch for CUDA on Linux, compiles on first use.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...io.compiled_library import KernelError
from ..finish import Finish
from ..kernel_maps import ConvolutionLayer
from ..voxels import VoxelGrid
from . import compiled_backend, spconv_backend, torch_backend, triton_backend
from .compiled_backend import kernels_unavailable_reason


@dataclass(frozen=True)
class Backend:
    """One way to compute a sparse convolution.

    Args:
        convolve: (features [V, Cin], kernel, grid, layer) -> [V', Cout]; a `Finish` comes fifth where `can_finish`.
        devices: Types of device that a layer which names the backend may be on; None = any.
        dtypes: What it computes; None = all.
        lends: Whether a layer that names it leaves other dtypes to torch. Otherwise `convolve` refuses them.
        failure: Why it does not work on this machine, or None where it does; tried once, and logged.
        can_finish: Whether it applies a `Finish`, and has kernels of size 1 of its own.
        is_deterministic: Whether the same input is known to give the same bits; otherwise `"auto"` passes it over
            under `torch.use_deterministic_algorithms`.
    """

    convolve: Callable[..., torch.Tensor]
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    lends: bool = False
    failure: Callable[[], str | None] = lambda: None
    can_finish: bool = False
    is_deterministic: bool = True

    def has(self, dtype: torch.dtype) -> bool:
        """Whether it computes this dtype."""
        return self.dtypes is None or dtype in self.dtypes


_BACKENDS = {
    "torch": Backend(torch_backend.convolve),
    "compiled": Backend(
        compiled_backend.convolve,
        devices=("cpu",),
        dtypes=compiled_backend.DTYPES,
        lends=True,
        failure=kernels_unavailable_reason,
        can_finish=True,
    ),
    "spconv": Backend(
        spconv_backend.convolve,
        dtypes=spconv_backend.DTYPES,
        failure=spconv_backend.spconv_unavailable_reason,
        is_deterministic=False,
    ),
    "triton": Backend(
        triton_backend.convolve,
        devices=triton_backend.DEVICES,
        dtypes=triton_backend.DTYPES,
        lends=True,
        failure=triton_backend.triton_unavailable_reason,
        can_finish=True,
    ),
}
# What "auto" tries for a type of device: the first that has the dtype and works. torch is behind all.
_AUTO = {"cpu": ("compiled",), "cuda": ("spconv", "triton")}

_PLACES = {"cpu": "a CPU", "cuda": "a CUDA device"}

BACKENDS = ("auto", *_BACKENDS)


def check_backend(name: str) -> None:
    """Raises ValueError unless `name` is a backend."""
    if name not in BACKENDS:
        raise ValueError(f"sparse backend is {name!r}; expected one of {', '.join(BACKENDS)}")


def working_backends(device: str) -> dict[str, str | None]:
    """The backends for a type of device, torch and what `"auto"` tries: why one does not work here, None = it does."""
    return {name: _BACKENDS[name].failure() for name in ("torch", *_AUTO.get(device, ()))}


def choose_backend(name: str, device: str, dtype: torch.dtype) -> str:
    """The backend for features of a device type and dtype where the layer asks for `name`: any but `"auto"`.

    `"auto"` is each backend for what it is made for: on a CUDA device spconv, where it is installed and passes its
    test, for its dtypes, and triton, where that does, for the others and without spconv; on a CPU the compiled
    kernels, where they can be built, for theirs; and torch for the rest. Under `torch.use_deterministic_algorithms`
    spconv is passed over. `"compiled"` and `"triton"` leave the dtypes that they lack to torch.

    Raises:
        ValueError: No such backend, or one for another device.
        KernelError: `"compiled"` or `"triton"` where the kernels cannot be built or fail their test.
    """
    check_backend(name)
    if name == "auto":
        for tried in _AUTO.get(device, ()):
            backend = _BACKENDS[tried]
            if torch.are_deterministic_algorithms_enabled() and not backend.is_deterministic:
                continue
            if backend.has(dtype) and backend.failure() is None:
                return tried
        return "torch"
    backend = _BACKENDS[name]
    if backend.devices is not None and device not in backend.devices:
        places = " or ".join(_PLACES.get(place, place) for place in backend.devices)
        raise ValueError(f"features are on {device}; the {name} sparse backend works on {places}")
    if not backend.lends:
        return name
    if reason := backend.failure():
        raise KernelError(reason)
    return name if backend.has(dtype) else "torch"


def can_finish(name: str) -> bool:
    """Whether this backend, any but `"auto"`, applies a `Finish`."""
    return _BACKENDS[name].can_finish


def convolve(
    features: torch.Tensor,
    kernel: torch.Tensor,
    grid: VoxelGrid,
    layer: ConvolutionLayer,
    finish: Finish | None = None,
) -> torch.Tensor:
    """Features [V, Cin] on `grid` -> [V', Cout] on the layer's output grid, by the layer's backend.

    Only backends that `can_finish` know `finish`.
    """
    backend = _BACKENDS[choose_backend(layer.backend, features.device.type, features.dtype)]
    if backend.can_finish:
        return backend.convolve(features, kernel, grid, layer, finish)
    if layer.kernel_size == 1:
        return features @ kernel
    return backend.convolve(features, kernel, grid, layer)
