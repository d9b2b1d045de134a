"""The engines by their names."""

from collections.abc import Sequence

from .engine import Engine
from .local_engine import LocalEngine


ENGINES = ("local", "ray")


def open_engine(
    name: str = "local",
    *,
    processes: int | None = None,
    address: str | None = None,
    preload: Sequence[str] = (),
    gpu: bool = False,
) -> Engine:
    """The engine of a name out of `ENGINES`.

    Args:
        name: `"local"` or `"ray"`.
        processes: Workers; None = one of this machine, or as many as the cluster has room for.
        address: Of the Ray cluster; None = a new one of this machine alone.
        preload: See `LocalEngine`.
        gpu: Each worker computes on a GPU.

    Raises:
        ValueError: The name is unknown, or an argument belongs to the other engine.
        ImportError: Ray is missing.
    """
    if name not in ENGINES:
        raise ValueError(f"engine is {name!r}; expected one of {ENGINES}")
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; expected at least 1")
    if name == "ray":
        from .ray_engine import RayEngine

        return RayEngine(address, processes, gpu)
    if address is not None:
        raise ValueError(f"address is {address} with the engine {name!r}; expected the engine 'ray'")
    return LocalEngine(processes or 1, preload, _count_gpus() if gpu else 0)


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()
