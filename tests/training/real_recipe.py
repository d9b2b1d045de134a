"""A recipe of the real network, small enough for seconds on one core, and frames for it."""

import functools
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch

from bifusion_hf.data.frames import encode_png16, load_frames
from bifusion_hf.recipe.arguments import TrainArguments
from scripts.interrupts import NETWORK


# Of what tests share, set for each session: some tests kill the process that would delete it, pytest does not forget.
PLACE = None
# Pixels of a side of a superpoint.
BLOCK = 16
# A network of one layer where one is enough: of all that is done for each layer or tensor, compiled or put in parts.
ONE_LAYER = {
    "decoder_layers": 1,
    "decoder_mask_levels": ["superpoint", "point"],
    "vision_config": {**NETWORK["vision_config"], "num_hidden_layers": 1},
}


def write_frames(folder, split, rows, shards=1):
    """A prepared data set of rows."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = load_frames("sample", "train").features
    for shard in range(shards):
        path = folder / "data" / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        datasets.Dataset.from_list(rows[shard::shards], features=features).to_parquet(str(path))
    return folder


@functools.cache
def prepared_frames():
    """A folder of six sample frames to train on, in two shards, and three to evaluate, with superpoints.

    To find superpoints takes longer than all else that becomes of a frame in these tests; here they are squares.
    """
    folder = Path(tempfile.mkdtemp(prefix="bifusion_frames_", dir=PLACE))
    for split, count, shards in (("train", 6, 2), ("val", 3, 1)):
        rows = [dict(row) for row in load_frames("sample", split).select(range(count))]
        for row in rows:
            height, width = 240, 320
            squares = np.arange(height)[:, None] // BLOCK * (width // BLOCK) + np.arange(width) // BLOCK
            row["superpoints"] = encode_png16(squares + 1)
        write_frames(folder, split, rows, shards)
    return folder


def small_recipe(folder, **sections):
    values = {
        "output_dir": str(folder),
        "model": {
            "preset": "tiny",
            "config": {**NETWORK, **sections.pop("config", {})},
            "processor": {"num_points": 600, **sections.pop("processor", {})},
        },
        "data": {"max_train_frames": 4, "max_val_frames": 2, "num_workers": 0},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"batch_size": 2, "epochs": 1},
        "evaluation": {"num_workers": 0},
        "logging": {"progress_bar": False, "every_updates": 1},
    }
    values["data"] |= dict.fromkeys(("train", "val"), str(prepared_frames()))
    for name, section in sections.items():
        values.setdefault(name, {}).update(section)
    return TrainArguments.from_dict(values)


def assert_all_trained(trainer):
    """Trains; every trainable tensor must have had a gradient, but for those that a softmax makes blind."""
    largest = torch.zeros(len(trainer.audit.names))
    observe = trainer.audit.observe

    def remember(update, counts):
        observe(update, counts)
        largest.copy_(torch.maximum(largest, trainer.audit._norms / trainer.audit._norms.max()))

    trainer.audit.observe = remember
    trainer.train()
    dead = [name for name, value in zip(trainer.audit.names, largest, strict=True) if not value > 1e-6]
    assert all("softmax" in trainer.audit.notes(name, trainer.network.get_parameter(name)) for name in dead), dead
