"""A CUDA device that is only pretended: its tensors are computed on the CPU, and what a GPU would have to do counts.

Counted are launches, operations that start at least one kernel, and waits, operations for which the host stands still
until the device is done: copies between the two that are not `non_blocking`, and results whose size depends on values.
Code under test sees tensors whose device is `cuda:0` and takes the branches of a GPU; mixing them with tensors of the
host is an error as on a GPU. A view and an allocation launch nothing. One operation is one launch here, although some
(sorting, `unique`) start several kernels on a device.

    python tests/launch_counter.py

prints the launches and waits of a frame through `simple` and of an update of `full`, with the places they come from.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only


aten = torch.ops.aten
DEVICE, CPU = torch.device("cuda", 0), torch.device("cpu")
PACKAGE = "bifusion_hf"

# Number of waits of operations whose result, or its size, the host has to know. `bincount` asks for the lowest and
# the highest value.
WAITS = {
    aten._local_scalar_dense: 1,
    aten.nonzero: 1,
    aten.masked_select: 1,
    aten._unique2: 1,
    aten.unique_dim: 1,
    aten.unique_consecutive: 1,
    aten.unique_dim_consecutive: 1,
    aten.bincount: 2,
    aten.equal: 1,
    aten._linalg_eigh: 1,
    aten.linalg_eig: 1,
    aten._linalg_svd: 1,
    aten.linalg_inv_ex: 1,
    aten.linalg_cholesky_ex: 1,
    aten._linalg_solve_ex: 1,
    aten.linalg_lu_factor_ex: 1,
    aten.histc: 1,
}
ALLOCATIONS = {
    aten.empty,
    aten.empty_strided,
    aten.empty_like,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten.lift_fresh,
    aten.alias,
    aten._unsafe_view,
    aten._reshape_alias,
    aten._local_scalar_dense,
    aten.is_pinned,
}
# What CUDA has no deterministic form of, and refuses under `torch.use_deterministic_algorithms` (PyTorch's list).
REFUSED = {
    aten.grid_sampler_2d_backward,
    aten.grid_sampler_3d_backward,
    aten.upsample_bicubic2d_backward,
    aten.upsample_linear1d_backward,
    aten.upsample_trilinear3d_backward,
    aten.reflection_pad2d_backward,
    aten.replication_pad2d_backward,
    aten.nll_loss2d_forward,
    aten.nll_loss2d_backward,
    aten._adaptive_avg_pool2d_backward,
    aten.max_pool3d_with_indices_backward,
    aten.kthvalue,
    aten.histc,
    aten.put_,
    aten.median,
}


class PretendedTensor(torch.Tensor):
    """A tensor of the pretended device; `host` holds its values.

    To torch itself it is one of the CPU, so that a build without CUDA computes it and its gradients; to who asks in
    Python it is on `cuda:0`.
    """

    @staticmethod
    def __new__(cls, host: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device="cpu",
        )

    def __init__(self, host: torch.Tensor):
        self.host = host

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func}: the pretended device works within a LaunchCounter alone")

    # For torch the tensor is on the CPU already, and it has the others in C, where it refuses subclasses.

    def to(self, *args, **kwargs) -> torch.Tensor:
        target = kwargs.get("device", args[0] if args else None)
        if not isinstance(target, (str, torch.device)) or torch.device(target).type != "cpu":
            return super().to(*args, **kwargs)
        dtypes = [value for value in (*args, kwargs.get("dtype")) if isinstance(value, torch.dtype)]
        return aten._to_copy(
            self, device=CPU, dtype=(*dtypes, self.dtype)[0], non_blocking=kwargs.get("non_blocking", False)
        )

    def cpu(self) -> torch.Tensor:
        return self.to(CPU)

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = DEVICE) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first")
        return self.detach().cpu().numpy()

    def __array__(self, dtype=None) -> Any:
        return self.numpy()

    def __repr__(self, **_) -> str:
        return f"PretendedTensor({tuple(self.shape)}, {self.dtype})"


class LaunchCounter(TorchDispatchMode):
    """Computes the pretended device's operations and counts them, as long as it is entered.

    Attributes:
        launches: By the place that caused them: `"layers/encoder.py:99"`, or "backward" where no line of the package
            is at work.
        waits: Likewise.
        refused: Operations that CUDA refuses in deterministic mode, likewise.
        bytes_to_host: What was copied from the device.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.waits, self.refused = Counter(), Counter(), Counter()
        self.bytes_to_host = 0
        self._parts: list[str] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is counted within goes under this name, not under its places."""
        self._parts.append(name)
        try:
            yield
        finally:
            self._parts.pop()

    def report(self, count: int = 25) -> str:
        """The places with most launches and waits."""
        lines = [f"{self.launches.total()} launches, {self.waits.total()} waits"]
        for name, counts in (("launches", self.launches), ("waits", self.waits), ("refused", self.refused)):
            lines += [f"{name}: {number:6} {place}" for place, number in counts.most_common(count)]
        return "\n".join(lines)

    def __enter__(self):
        # As fake tensors do: torch.tensor(..., device=DEVICE) makes its tensor on the CPU and then moves it.
        self._before = torch._C._only_lift_cpu_tensors(), torch.cuda._lazy_init
        torch._C._set_only_lift_cpu_tensors(True)
        torch.cuda._lazy_init = lambda: None
        return super().__enter__()

    def __exit__(self, *error):
        only_lift, torch.cuda._lazy_init = self._before
        torch._C._set_only_lift_cpu_tensors(only_lift)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        pretended = [value for value in flat if isinstance(value, PretendedTensor)]
        named = kwargs.get("device")
        target = torch.device(named).type if named is not None else None
        if target == "cpu" and func.overloadpacket is not aten._to_copy and torch._C._current_graph_task_id() != -1:
            # Torch itself makes room for a gradient, where it takes its tensors to be.
            target = "cuda"
        if not pretended and target != "cuda":
            return func(*args, **kwargs)
        packet = func.overloadpacket
        if packet is aten._to_copy and target != "cpu" and pretended and kwargs.get("dtype") in (None, args[0].dtype):
            # `.to` of what is there already.
            return PretendedTensor(args[0].host)
        self._check_devices(func, packet, flat, pretended)
        self._count(func, packet, args, kwargs, target)
        inner_args, inner_kwargs = tree_map_only(PretendedTensor, lambda value: value.host, (args, kwargs))
        if target == "cuda":
            inner_kwargs["device"] = CPU
        # What only a copy between the two has.
        inner_kwargs.pop("non_blocking", None)
        inner_kwargs.pop("pin_memory", None)
        out = func(*inner_args, **inner_kwargs)
        if packet is aten.copy_ and not isinstance(args[0], PretendedTensor):
            return args[0]
        if target == "cpu":
            return out
        wrapped = tree_map(lambda value: PretendedTensor(value) if isinstance(value, torch.Tensor) else value, out)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _check_devices(self, func, packet, flat, pretended):
        # Places may be on the host, and copies lead from one to the other.
        if packet in (aten._to_copy, aten.copy_, aten.index, aten.index_put_, aten.index_put):
            return
        for value in flat:
            if (
                isinstance(value, torch.Tensor)
                and not isinstance(value, PretendedTensor)
                and value.dim()
                and pretended
            ):
                raise RuntimeError(f"{func}: expected all tensors on one device, found cuda:0 and cpu")

    def _count(self, func, packet, args, kwargs, target):
        place = self._place()
        waits = WAITS.get(packet, 0)
        if packet is aten._to_copy:
            crosses = target is not None and (target == "cuda") != isinstance(args[0], PretendedTensor)
            waits = int(crosses and not kwargs.get("non_blocking"))
            if target == "cpu":
                self.bytes_to_host += args[0].numel() * args[0].element_size()
        elif packet is aten.copy_:
            crosses = isinstance(args[0], PretendedTensor) != isinstance(args[1], PretendedTensor)
            is_blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            waits = int(crosses and is_blocking)
        elif packet in (aten.index, aten.index_put, aten.index_put_):
            # Places given by a mask are counted first; places on the host are copied.
            indices = [index for index in args[1] if index is not None]
            waits = sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
            waits += sum(not isinstance(index, PretendedTensor) for index in indices)
        elif packet is aten.repeat_interleave:
            waits = int(kwargs.get("output_size") is None)
        if waits:
            self.waits[place] += waits
        if not (packet in ALLOCATIONS or func.is_view):
            self.launches[place] += 1
        if packet in REFUSED or (packet is aten.cumsum and args[0].is_floating_point()):
            self.refused[f"{packet} at {place}"] += 1

    def _place(self) -> str:
        if self._parts:
            return self._parts[-1]
        frame = sys._getframe(2)
        while frame is not None:
            path = frame.f_code.co_filename
            if f"/{PACKAGE}/" in path:
                return f"{path.rpartition(f'/{PACKAGE}/')[2]}:{frame.f_lineno}"
            frame = frame.f_back
        return "backward"


def move(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its weights on the pretended device, in place; within a `LaunchCounter`."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = torch.nn.Parameter(value.detach().to(DEVICE), value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = value.to(DEVICE)
    return module


def move_batch(value: Any) -> Any:
    """A batch, or a part of one, on the pretended device; within a `LaunchCounter`."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(DEVICE), value)


def narrow_network(preset: str) -> torch.nn.Module:
    """The network of a preset with all its layers, each a few channels wide: what is launched depends on no width."""
    from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation
    from bifusion_hf.presets import PRESETS

    torch.manual_seed(0)
    config = BiFusionConfig.from_preset(
        preset,
        hidden_size=16,
        projection_dim=16,
        projection_hidden_size=16,
        decoder_size=16,
        decoder_attention_heads=2,
        decoder_intermediate_size=16,
        point_config={"stem_channels": 8, "planes": [8] * 8},
        vision_config={
            **PRESETS[preset]["vision_config"],
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "image_size": 32,
        },
        sparse_backend="torch",
    )
    return BiFusionForInstanceSegmentation(config)


@contextlib.contextmanager
def convolutions_apart(counter: LaunchCounter) -> Iterator[None]:
    """Counts apart what the torch backend's convolutions launch, without maps and plans, and what finishes them.

    The places are "convolutions" and, for the normalisation, shortcut and rectifier behind each, which other backends
    apply while they write, "finish".
    """
    from bifusion_hf.layers import point_encoder
    from bifusion_hf.sparse.backends import torch_backend

    walk, normalized = torch_backend._walk, point_encoder.convolve_normalized

    def counted(*args, **kwargs):
        with counter.part("convolutions"):
            return walk(*args, **kwargs)

    def counted_finish(convolution, norm, x, *args, **kwargs):
        out = convolution(x)
        with counter.part("finish"):
            return normalized(lambda _: out, norm, x, *args, **kwargs)

    torch_backend._walk, point_encoder.convolve_normalized = counted, counted_finish
    try:
        yield
    finally:
        torch_backend._walk, point_encoder.convolve_normalized = walk, normalized


def count_forward(network: torch.nn.Module, batch: dict[str, Any]) -> LaunchCounter:
    """A forward pass in evaluation: the network as the pipeline runs it."""
    with LaunchCounter():
        network, batch = move(network.eval()), move_batch(batch)
    with LaunchCounter() as counter, convolutions_apart(counter), torch.no_grad():
        network(**batch)
    return counter


def count_update(network: torch.nn.Module, batch: dict[str, Any]) -> LaunchCounter:
    """An update of training: counts of samples, forward, backward, gradient's norm, step of AdamW, numbers read."""
    with LaunchCounter():
        network, batch = move(network.train()), move_batch(batch)
        optimizer = torch.optim.AdamW(network.parameters(), foreach=False)
    with LaunchCounter() as counter, convolutions_apart(counter):
        counts = network.count_loss_samples(**batch)
        counts = dict(zip(counts, torch.stack(list(counts.values())).tolist(), strict=True))
        counts = dict(zip(counts, torch.tensor(list(counts.values()), device=DEVICE).unbind(), strict=True))
        outputs = network(**batch, loss_counts=counts)
        outputs.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, foreach=False)
        torch.stack([outputs.loss.detach(), *(term.detach() for term in outputs.loss_dict.values()), norm]).tolist()
        with counter.part("optimizer"):
            optimizer.step()
    return counter


def main() -> None:
    from conftest import _make_batch as make_batch

    labels = ("mask_labels", "class_labels", "semantic_labels")
    frame = {name: value for name, value in make_batch((4000,), image_size=(64, 96)).items() if name not in labels}
    print("A frame through simple:", count_forward(narrow_network("simple"), frame).report(), sep="\n")
    batch = make_batch((4000, 3900, 3800, 4000, 3900, 3800), image_size=(64, 96))
    batch["query_seeds"] = torch.arange(6)
    print("An update of full, 6 frames:", count_update(narrow_network("full"), batch).report(40), sep="\n")


if __name__ == "__main__":
    main()
