"""What is started on each of two "nodes": the stand-in trained by all their processes, whole and in parts."""

import os
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from training_standin import make_trainer, recipe

from bifusion_hf.recipe.arguments import TrainArguments


# What `accelerate launch` sets for `fsdp_config`.
IN_PARTS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def arguments_of(folder: Path, batch_size: int) -> TrainArguments:
    """Two frames of four have no class in some updates, so that processes differ in what they count."""
    return recipe(folder, training={"batch_size": batch_size, "max_updates": 6, "ema_decay": 0.5})


def train(folder: Path, batch_size: int):
    trainer = make_trainer(arguments_of(folder, batch_size), dtype=torch.float64, freeze_norm=True)
    trainer.train()
    return trainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    destroy, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, lambda *_: None
    train(folder / "whole", 4 // world)
    # A second run of the same processes, in their group: to start them takes longer than both.
    torch.distributed.destroy_process_group = destroy
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ.update(IN_PARTS)
    train(folder / "parts", 4 // world)
    place = {name: os.environ[name] for name in ("RANK", "GROUP_RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    (folder / f"place_{place['RANK']}").write_text(" ".join(place.values()))
