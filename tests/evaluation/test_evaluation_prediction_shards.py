import json

import numpy as np
import pytest
from perfect_network import readable_processor

from bifusion_hf.batch import Processes
from bifusion_hf.evaluation import PredictionFile
from bifusion_hf.evaluation.evaluator import FramePrediction
from bifusion_hf.evaluation.prediction_shards import shard_folder, write_in_shards


COUNT = 7


def write(path, processes=None, settings=None, shard_size=2):
    """A file of seven frames in shards of two; gives the rows that were predicted."""
    seen = []

    def predict(rows, writer):
        # What a killed process left is gone before any work; the file at hand is the only one.
        if processes is None:
            assert len(list(shard_folder(path).glob("shards/.partial*"))) == 1
        for row in rows:
            seen.append(row)
            masks = np.random.default_rng(row).random((2, 9)) < 0.5
            scores, labels = np.array([0.9, 0.1], np.float32) / (row + 1), np.zeros(2, np.int64)
            writer.write(FramePrediction(f"frame {row}", np.arange(9), masks, scores, labels))

    options = {"processes": processes, **({} if shard_size is None else {"shard_size": shard_size})}
    write_in_shards(path, COUNT, predict, readable_processor(False), None, settings or {"seed": 0}, **options)
    return seen


class Launched(Processes):
    """One of two processes; the second one runs where the first one shares the work."""

    def __init__(self, rank, path, told):
        super().__init__(rank, 2)
        self.__dict__.update(path=path, told=told)

    def share(self, shards):
        if self.is_main:
            self.told["left"] = list(shards)
            self.told["second"] = write(self.path, Launched(1, self.path, self.told))
        return dict.fromkeys(self.told["left"][self.rank :: 2])

    def gather(self, value):
        self.told.setdefault("met", []).append((self.rank, self.path.exists()))
        return [value] * 2


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "predictions.parquet"
    assert write(path) == list(range(COUNT))
    return path


def test_shards_become_one_file_in_the_order_of_the_frames(alone):
    assert [prediction.frame_id for prediction in PredictionFile(alone)] == [f"frame {row}" for row in range(COUNT)]
    assert [path.name for path in alone.parent.iterdir()] == ["predictions.parquet"]


def test_each_process_makes_its_shards_and_the_first_one_the_file_when_all_are_done(alone, tmp_path):
    path, told = tmp_path / "predictions.parquet", {}
    assert write(path, Launched(0, path, told)) == [0, 1, 4, 5]
    assert told["second"] == [2, 3, 6] and told["met"] == [(1, False), (0, False)]
    assert path.read_bytes() == alone.read_bytes() and not shard_folder(path).exists()


def test_what_is_there_is_not_made_again_and_settings_do_not_mix(alone, tmp_path, monkeypatch):
    path = tmp_path / "predictions.parquet"

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bifusion_hf.evaluation.prediction_shards.delete_folder", stopped)
    for name, size in ((path, 2), (tmp_path / "other.parquet", None)):
        with pytest.raises(KeyboardInterrupt):
            write(name, shard_size=size)
        kept = json.loads((shard_folder(name) / "settings.json").read_text())
        assert (kept["frames"], kept["shard_size"]) == (COUNT, size or 256)
    monkeypatch.undo()
    shards = sorted(shard_folder(path).glob("shards/*.parquet"))
    assert len(shards) == 4
    for shard in (path, shards[1], shards[3]):
        shard.unlink()
    (shards[0].parent / ".partial-1-shard.parquet").touch()
    with pytest.raises(ValueError, match="another seed"):
        write(path, settings={"seed": 1})
    with pytest.raises(ValueError, match="another shard_size"):
        write(path, shard_size=3)
    assert write(path) == [2, 3, 6] and path.read_bytes() == alone.read_bytes()
