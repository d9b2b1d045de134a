"""Weights, gradients and optimizer state in parts, one in each process (FSDP2).

Accelerate's configuration says so, and here PyTorch's `fully_shard` does it. `Accelerator.prepare` is not asked:
under bf16 it would round the inputs to bfloat16, coordinates in metres among them; on a CPU it forgets about shards
without a word; and its checkpoints are of one way of training. Here a network computes under autocast as it does
unsharded, and checkpoints hold whole tensors, so that a run goes on sharded, unsharded, or in one process.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, is_torch_version, parse_flag_from_env
from torch import nn

from ..recipe.arguments import TrainArguments


# What Accelerate's launcher can ask for, and the loop cannot do. A reason begins with the key of its configuration.
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "distributed_type DEEPSPEED: DeepSpeed makes the optimizer's step within the backward "
    "pass, before the loop has looked at the gradients; configs/accelerate/eight_gpus_fsdp2.yaml shards the same",
    "ACCELERATE_USE_MEGATRON_LM": "distributed_type MEGATRON_LM: the network has no layers of Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config: the network has no plan for tensor or context "
    "parallelism, and frames are shared among all processes; use fsdp_config alone",
}


@dataclass(frozen=True)
class Sharding:
    """How a network is sharded.

    Args:
        classes: Names of classes whose modules are gathered each by itself, in forward and backward; the rest of the
            network is gathered as a whole.
        reshard_after_forward: Such a module is freed after its forward pass, and gathered anew for the backward one.
    """

    classes: tuple[str, ...] = ()
    reshard_after_forward: bool = True


def check_launcher() -> None:
    """Refuses what Accelerate's launcher asks for and the loop cannot do.

    Raises:
        ValueError: It asks for something of `REFUSED`, or to compile.
    """
    for variable, reason in REFUSED.items():
        if parse_flag_from_env(variable):
            raise ValueError(f"Accelerate's configuration has {reason}")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise ValueError(
            f"Accelerate's configuration has dynamo_backend {backend}, which compiles all of the network, and shapes "
            "change with every batch: say training.compile in the recipe"
        )


def read_sharding(arguments: TrainArguments, processes: int) -> Sharding | None:
    """The sharding that Accelerate's launcher asks for (`fsdp_config`); None where it does not.

    Args:
        arguments: The recipe.
        processes: How many were launched.

    Raises:
        ValueError: It does not go with the recipe, or asks for what is not there.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    version, policy = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper()
    training = arguments.training
    misfits = (
        (version != "2", f"fsdp_version {version}, whose flat parameters have no names to audit: set 2"),
        (not is_torch_version(">=", "2.7"), f"fsdp_config, which needs torch 2.7; this is {torch.__version__}"),
        (processes < 2, "fsdp_config, and there is one process, with nothing to share: leave it out"),
        (
            parse_flag_from_env("FSDP_OFFLOAD_PARAMS"),
            "fsdp_offload_params true, which is not done here: set false",
        ),
        (
            parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"),
            "fsdp_cpu_ram_efficient_loading true; here every process reads the weights itself: set false",
        ),
        (
            parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"),
            "fsdp_activation_checkpointing true: say training.gradient_checkpointing in the recipe",
        ),
        (bool(os.environ.get("FSDP_IGNORED_MODULES")), "fsdp_ignored_modules; here all of a network is sharded"),
        (
            policy == "SIZE_BASED_WRAP",
            "fsdp_auto_wrap_policy SIZE_BASED_WRAP, and a module's size does not tell whether its weights are read in "
            "its own forward: name classes with TRANSFORMER_BASED_WRAP, or set NO_WRAP",
        ),
        (
            training.mixed_precision == "fp16",
            "fsdp_config, the recipe training.mixed_precision fp16, whose scale all parts would have to agree on: "
            "use bf16",
        ),
        (
            training.find_batch_size,
            "fsdp_config, the recipe training.find_batch_size: a process out of memory would leave the others waiting "
            "for its part. Set training.batch_size",
        ),
        (training.compile, "fsdp_config, the recipe training.compile; both together have never run: leave one out"),
        (arguments.dry_run, "fsdp_config, the recipe dry_run, which measures a whole network: plan without launcher"),
    )
    for holds, reason in misfits:
        if holds:
            raise ValueError(f"Accelerate's configuration has {reason}")
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "") if policy == "TRANSFORMER_BASED_WRAP" else ""
    classes = tuple(name.strip() for name in names.split(",") if name.strip())
    return Sharding(classes, parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", True))


def shard_network(network: nn.Module, sharding: Sharding, accelerator: Accelerator) -> None:
    """Leaves a part of each parameter in this process; all processes call this together.

    Buffers stay whole, each process's own, and so do parameters without dimensions. All begin as the first process
    has them.

    Args:
        network: Changed in place.
        sharding: How.
        accelerator: Of the run.

    Raises:
        ValueError: No module is of a class that `sharding` names.
    """
    # Late: it takes seconds.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = sorted({type(module).__name__ for module in network.modules()})
    missing = [name for name in sharding.classes if name not in found]
    if missing:
        raise ValueError(f"fsdp_transformer_layer_cls_to_wrap names {missing}; the network has {', '.join(found)}")
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.copy_(broadcast(tensor.detach()))
    small = {parameter for parameter in network.parameters() if parameter.ndim == 0 or parameter.numel() == 0}
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # The innermost first: what is sharded already is left to itself.
    for module in reversed(list(network.modules())):
        name = type(module).__name__
        if name in sharding.classes:
            module.register_forward_hook(partial(_check_output, name))
            freed = sharding.reshard_after_forward
            fully_shard(module, mesh=mesh, reshard_after_forward=freed, ignored_params=small)
    fully_shard(network, mesh=mesh, ignored_params=small)


def _check_output(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """Refuses a module that hides its tensors: a backward pass through them would read weights that are freed."""
    values = output.values() if isinstance(output, Mapping) else output
    values = values if isinstance(output, (Mapping, tuple, list)) else [output]
    hidden = sorted({type(value).__name__ for value in values if not isinstance(value, torch.Tensor | None)})
    if hidden:
        raise ValueError(
            f"fsdp_transformer_layer_cls_to_wrap names {name}, which returns {', '.join(hidden)}; only a module that "
            "returns tensors can be gathered by itself. Leave it out: it is then gathered with the whole network"
        )


def wrap_network(network: nn.Module, accelerator: Accelerator, sharding: Sharding | None) -> nn.Module:
    """The network that the loop calls: under autocast, and where processes share the frames, with their gradients."""
    if sharding is None:
        return accelerator.prepare_model(network)
    # All that Accelerate does for evaluation is autocast; the rest is done.
    return accelerator.prepare_model(network, device_placement=False, evaluation_mode=True)


@contextlib.contextmanager
def kept_gathered(network: nn.Module, sharding: Sharding | None) -> Iterator[None]:
    """Within the context nothing is freed after a forward or backward pass.

    So a process may ask for gradients of its own, between them: to gather again, it would need the others.
    """
    parts = [] if sharding is None else [module for module in network.modules() if hasattr(module, "unshard")]
    try:
        for module in parts:
            module.set_reshard_after_forward(False, recurse=False)
            module.set_reshard_after_backward(False, recurse=False)
        yield
    finally:
        for module in parts:
            # The whole network is not freed: its backward pass follows at once.
            freed = module is not network and sharding.reshard_after_forward
            module.set_reshard_after_forward(freed, recurse=False)
            module.set_reshard_after_backward(True, recurse=False)


def average_unsharded_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Averages over processes what `fully_shard` does not: the gradients of parameters that have no parts.

    All processes call this together.
    """
    gradients = [p.grad for p in parameters if p.grad is not None and not has_parts(p)]
    if gradients:
        averages = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, average in zip(gradients, averages.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(average.view_as(gradient))


def has_parts(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor, whose import takes seconds that unsharded runs need not wait."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with the parts of all processes, which call this together; one without parts as it is."""
    return tensor.full_tensor() if has_parts(tensor) else tensor


def part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if has_parts(tensor) else tensor


def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """`state_dict` of whole tensors, gathered ones on the CPU; all processes call this together."""
    return {name: _on_host(value) for name, value in module.state_dict().items()}


def load_whole_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads a `state_dict` of whole tensors, of which a sharded module takes its part."""
    own = module.state_dict()
    module.load_state_dict({name: _part_of(value, own.get(name)) for name, value in state.items()})


def keep_whole_states(optimizer: torch.optim.Optimizer) -> None:
    """Makes `state_dict` of an optimizer of parts give, and `load_state_dict` take, whole tensors.

    `state_dict` is then for all processes to call together.
    """

    def gather(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "state": {number: _each(values, _on_host) for number, values in state["state"].items()}}

    def share(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        shared = {}
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in state["state"]:
                values = state["state"][number]
                shared[number] = _each(values, lambda value, like=parameter: _part_of(value, like))
        return {**state, "state": shared}

    optimizer.register_state_dict_post_hook(gather)
    optimizer.register_load_state_dict_pre_hook(share)


def _part_of(value: torch.Tensor, example: torch.Tensor | None) -> torch.Tensor:
    """The part of a whole tensor that belongs beside that of `example`; every process has the whole one."""
    if example is None or not has_parts(example) or value.shape != example.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(example.device)
    return distribute_tensor(value, example.device_mesh, example.placements, src_data_rank=None)


def _each(values: Mapping[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def _on_host(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor().cpu() if has_parts(value) else value


def whole_norms(tensors: Sequence[torch.Tensor], examples: Iterable[torch.Tensor]) -> torch.Tensor:
    """L2 norms float32 [n] of whole tensors, of which this process may have a part; all processes call this together.

    Args:
        tensors: What this process has of each.
        examples: One for each that tells whether this is a part, as a parameter does of its gradient.
    """
    # One kernel for all tensors; a Python loop over 500 parameters would cost more than the optimizer.
    norms = torch.stack([value.float() for value in torch._foreach_norm(list(tensors))])
    parts = torch.tensor([has_parts(example) for example in examples])
    if not parts.any():
        return norms
    squares = norms.double().square()
    torch.distributed.all_reduce(squares)
    return torch.where(parts.to(norms.device), squares.sqrt().float(), norms)
