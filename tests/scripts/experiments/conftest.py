import json

import datasets
import pytest
import torch

from bifusion_hf.data.frames import frame_features, load_frames
from bifusion_hf.rooms.dataset import frames_hash
from bifusion_hf.rooms.photometric import PHOTOMETRIC_CLASSES


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """A cache of `datasets` for these tests alone."""
    torch.set_num_threads(1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


@pytest.fixture
def rooms(tmp_path):
    """A folder as `render_rooms.py` leaves it, of the first sample frames."""
    folder = tmp_path / "rooms"
    (folder / "data").mkdir(parents=True)
    counts = {"train": 4, "val": 3}
    for split, count in counts.items():
        rows = list(load_frames("sample", split).select(range(count)))
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows, features=frame_features()).to_parquet(path)
    hashes = {split: frames_hash(folder, split) for split in counts}
    content = {"photometric": PHOTOMETRIC_CLASSES, "frames": counts, "sha256": hashes}
    (folder / "rooms.json").write_text(json.dumps(content))
    return folder
