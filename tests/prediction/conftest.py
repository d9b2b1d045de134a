"""Nine small frames, one of them broken, and a network for such."""

import shutil

import datasets
import numpy as np
import pytest
from frame_factory import make_frame

from bifusion_hf.assets import SAMPLE_CHECKPOINT
from bifusion_hf.data.frames import encode_png16, frame_features, frame_to_row
from bifusion_hf.prediction.shards import PredictionSettings
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(scope="session")
def frames_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    (folder / "data").mkdir()
    rows = [frame_to_row(make_frame(96, 128, seed=seed, frame_id=f"frame {seed}")) for seed in range(9)]
    rows[4]["depth"] = encode_png16(np.zeros((96, 128), np.uint16))
    for index, part in enumerate((rows[:5], rows[5:])):
        path = folder / "data" / f"val-{index:05d}-of-00002.parquet"
        datasets.Dataset.from_list(part, features=frame_features()).to_parquet(path)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """The package's network, which finds something, on fewer points."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copytree(SAMPLE_CHECKPOINT, folder, dirs_exist_ok=True)
    values = {"num_points": 1500, "num_superpoints": 60, "image_size": (96, 128)}
    BiFusionProcessor.from_pretrained(SAMPLE_CHECKPOINT, **values).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(small_checkpoint):
    return PredictionSettings(str(small_checkpoint), threshold=0.3, batch_size=2)
