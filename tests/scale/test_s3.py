"""The commands on a store: an S3 server on loopback."""

import json

import numpy as np
import pytest
from frame_factory import make_frame
from PIL import Image

from bifusion_hf.assets import SAMPLE_CHECKPOINT
from bifusion_hf.data.frames import load_frames
from bifusion_hf.data.importing import import_recording
from bifusion_hf.data.recordings import open_recording
from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.storage import Folder
from bifusion_hf.prediction.files import read_results
from bifusion_hf.prediction.shards import PredictionSettings, predict_shards
from bifusion_hf.prediction.sources import DataSetFrames


def test_a_recording_in_a_store_becomes_a_data_set_and_predictions_there(bucket, tmp_path):
    for number in range(3):
        place = tmp_path / "hall" / f"{number:04d}"
        place.mkdir(parents=True)
        frame = make_frame(96, 128, seed=number)
        Image.fromarray(frame.image).save(place / "colour.png")
        Image.fromarray(np.rint(frame.depth * 1000).astype(np.uint16)).save(place / "depth.png")
        (place / "intrinsics.json").write_text(json.dumps({"depth_scale": 1000, **_pinhole(frame.intrinsics)}))
    here = import_recording(tmp_path / "hall", tmp_path / "here", val=1, progress=False, frames_per_shard=2)
    system = Folder(bucket)._store[0]
    system.put(str(tmp_path / "hall"), f"{bucket}/hall", recursive=True)
    assert open_recording(f"{bucket}/hall").ids == open_recording(tmp_path / "hall").ids

    there = import_recording(f"{bucket}/hall", f"{bucket}/set", val=1, progress=False, frames_per_shard=2)
    assert there["splits"] == here["splits"]
    for name in Folder(tmp_path / "here").names("data/*.parquet"):
        with Folder(f"{bucket}/set").open(name) as file:
            assert file.read() == (tmp_path / "here" / name).read_bytes()
    assert load_frames(f"{bucket}/set", "val")["frame_id"] == load_frames(tmp_path / "here", "val")["frame_id"]
    # It goes on: nothing is made again.
    before = {name: system.modified(f"{bucket}/set/{name}") for name in Folder(f"{bucket}/set").names("data/*")}
    import_recording(f"{bucket}/hall", f"{bucket}/set", val=1, progress=False, frames_per_shard=2)
    assert before == {name: system.modified(f"{bucket}/set/{name}") for name in before}

    settings = PredictionSettings(str(SAMPLE_CHECKPOINT), batch_size=1)
    for source, out in ((tmp_path / "here", tmp_path / "results"), (f"{bucket}/set", f"{bucket}/results")):
        predict_shards(DataSetFrames(str(source), "val"), settings, out, shard_size=2, merge=True, device="cpu")
    names = Folder(tmp_path / "results").names("shards/*")
    assert Folder(f"{bucket}/results").names("shards/*") == names and len(names) == 2
    for name in names:
        with Folder(f"{bucket}/results").open(name) as file:
            assert file.read() == (tmp_path / "results" / name).read_bytes()
    assert len(list(read_results(Folder(f"{bucket}/results"), ["results.parquet"]))) == 3
    Folder(f"{bucket}/results").delete(names[0])
    predict_shards(DataSetFrames(f"{bucket}/set", "val"), settings, f"{bucket}/results", shard_size=2, device="cpu")
    assert Folder(f"{bucket}/results").names("shards/*") == names


def test_what_is_missing_there_is_named(bucket):
    with pytest.raises(DataFileError, match=r"s3://frames-\w+/nothing: has no data/val-\*.parquet"):
        len(DataSetFrames(f"{bucket}/nothing", "val").shards(2))
    with pytest.raises(DataFileError, match="s3://other/out/a: no such file or folder"):
        Folder("s3://other/out").read_text("a")


def _pinhole(intrinsics):
    return {name: float(intrinsics[place]) for name, place in
            {"fx": (0, 0), "fy": (1, 1), "cx": (0, 2), "cy": (1, 2)}.items()}  # fmt: skip
