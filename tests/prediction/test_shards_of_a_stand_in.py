"""What `prediction.shards` asks of a network, by a stand-in for it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bifusion_hf.batch import Processes
from bifusion_hf.io.storage import Folder
from bifusion_hf.prediction import shards
from bifusion_hf.prediction.shards import PredictionSettings, ShardPredictor, predict_shards
from bifusion_hf.prediction.sources import BrokenFrame, Piece


class Found(dict):
    """Two segments."""

    def __init__(self, name):
        super().__init__(segments_info=[{}, {}])
        self.name = name

    def to_coco(self):
        images, categories = [{"id": 0, "file_name": self.name}], [{"id": 0, "name": "object"}]
        return {"images": images, "annotations": [{"id": 1, "image_id": 0}] * 2, "categories": categories}


class Segmenter:
    """Takes down what it is asked; a frame without a name cannot be prepared."""

    def __init__(self, estimate_up=True):
        self.device = "its device"
        self.processor = SimpleNamespace(estimate_up=estimate_up, part_gap=0.05)
        self.batches, self.forward_options, self.options, self.superpoints = [], [], [], []

    def preprocess(self, frame):
        self.superpoints.append(frame.superpoints)
        if not frame.name:
            raise ValueError("it has no name")
        return frame

    def collate(self, samples):
        self.batches.append([sample.name for sample in samples])
        return samples

    def forward(self, batch, **options):
        self.forward_options.append(options)
        return batch

    def postprocess(self, outputs, **options):
        self.options.append(options)
        return [Found(sample.name) for sample in outputs]


class Source:
    """Five frames, of which the second is broken and the fourth has no name; two shards."""

    name = "a source"

    def shards(self, size):
        return {"first": Piece("", 0, 4), "second": Piece("", 4, 5)}

    def frames(self, piece):
        for number in range(piece.start, piece.stop):
            name = "" if number == 3 else f"frame {number}"
            values = {"image": "image", "depth": "depth", "intrinsics": "intrinsics", "superpoints": None}
            frame = SimpleNamespace(name=name, frame_id=f"id {number}", **values)
            yield number, BrokenFrame("id 1", "it is broken") if number == 1 else frame


@pytest.fixture
def segmenter(monkeypatch):
    found = Segmenter()
    monkeypatch.setattr(shards, "load_segmenter", lambda *what: {("here", None): found}[what])
    monkeypatch.setattr(shards, "weights_digest", lambda checkpoint: f"digest of {checkpoint}")
    return found


def test_a_shard_holds_the_frames_that_could_be_used(segmenter, tmp_path):
    settings = PredictionSettings("here", threshold=0.3, batch_size=2)
    predictor = ShardPredictor(Source(), settings, Folder(tmp_path), "coco", None)
    record = predictor("first", Piece("", 0, 4))
    assert record.pop("seconds") >= 0
    skipped = {"id 1": "it is broken", "id 3": "it has no name"}
    assert record == {"piece": ["", 0, 4], "frames": 2, "instances": 4, "skipped": skipped}
    written = json.loads((tmp_path / "shards" / "first.json").read_text())
    assert written["info"] == record
    assert [(image["file_name"], image["number"]) for image in written["images"]] == [("frame 0", 0), ("frame 2", 2)]
    predictor("all", Piece("", 0, 5))
    assert segmenter.batches == [["frame 0", "frame 2"], ["frame 0", "frame 2"], ["frame 4"]]
    assert (
        segmenter.forward_options == [{"score_threshold": 0.3}] * 3 and segmenter.options == [{"threshold": 0.3}] * 3
    )
    assert segmenter.superpoints == [None] * 7


@pytest.mark.parametrize(("estimate_up", "camera_up"), [(True, True), (True, False), (False, True), (False, False)])
def test_up_is_estimated_where_both_want_it(segmenter, tmp_path, estimate_up, camera_up):
    segmenter.processor.estimate_up = estimate_up
    ShardPredictor(Source(), PredictionSettings("here", camera_up=camera_up), Folder(tmp_path), "coco", None)
    assert segmenter.processor.estimate_up == (estimate_up and not camera_up)
    assert segmenter.processor.part_gap == 0.05, "its own, where no other is asked for"


def test_settings_reach_the_network(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr("bifusion_hf.labeling.TextLabeler", lambda **arguments: arguments)
    monkeypatch.setattr("bifusion_hf.superpoints.masks.load_mask_generator", lambda name: f"generator {name}")
    monkeypatch.setattr("bifusion_hf.superpoints.masks.superpoints_from_mask_generator", lambda *arguments: arguments)
    settings = PredictionSettings(
        "here", name_threshold=0.0, part_gap=0.0, mask_generator="masks", labels=["cup"], labeler={"model": "clip"}
    )
    predictor = ShardPredictor(Source(), settings, Folder(tmp_path), "coco", None)
    predictor("first", Piece("", 0, 4))
    assert segmenter.processor.part_gap == 0.0
    labeler = {"model": "clip", "device": "its device"}
    assert segmenter.options == [
        {"threshold": 0.5, "name_threshold": 0.0, "candidate_labels": ["cup"], "labeler": labeler, "top_k": 5}
    ]
    assert segmenter.superpoints == [("generator masks", "image", "depth", "intrinsics")] * 3


def test_settings_are_described_as_json():
    settings = PredictionSettings("nowhere", labels=["cup"], labeler={"model": Path("a", "b"), "mode": None})
    described = settings.described()
    assert json.loads(json.dumps(described)) == described
    assert described["labeler"] == {"model": str(Path("a", "b")), "mode": None} and described["labels"] == ["cup"]
    assert (described["batch_size"], described["threshold"], described["camera_up"]) == (4, 0.5, False)
    assert "weights_sha256" in described


def test_a_run_tells_of_its_shards_and_ends_with_a_report(segmenter, tmp_path, capsys):
    settings = PredictionSettings("here")
    left = tmp_path / "shards" / ".partial-1-first.json"
    left.parent.mkdir()
    left.touch()
    forward = segmenter.forward

    def forward_when_tidy(*arguments, **options):
        assert not left.exists(), "what a killed process left is gone before any work"
        return forward(*arguments, **options)

    segmenter.forward = forward_when_tidy
    report = predict_shards(Source(), settings, tmp_path, kind="coco")
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in printed] == ["first: 2 frames", "second: 1 frames"]
    assert [line.endswith(", 2 frames skipped") for line in printed] == [True, False]
    assert report["settings"]["source"] == "a source" and report["settings"]["weights_sha256"] == "digest of here"
    assert (report["settings"]["kind"], report["settings"]["shard_size"]) == ("coco", 256)
    assert (report["shards"], report["frames"], report["instances"], len(report["skipped"])) == (2, 3, 6, 2)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert not (tmp_path / "results.json").exists()
    predict_shards(Source(), settings, tmp_path, kind="coco")
    assert capsys.readouterr().out == "2 of 2 shards are there\n"
    predict_shards(Source(), settings, tmp_path, kind="coco", merge=True, tell=False)
    assert capsys.readouterr().out == "" and (tmp_path / "results.json").exists()
    with pytest.raises(ValueError, match="another threshold"):
        predict_shards(Source(), PredictionSettings("here", threshold=0.4), tmp_path, kind="coco")
    with pytest.raises(ValueError, match=r"kind is 'csv'; expected one of \('parquet', 'coco'\)"):
        predict_shards(Source(), settings, tmp_path, kind="csv")
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        predict_shards(Source(), PredictionSettings("here", batch_size=0), tmp_path, kind="coco")
    single = PredictionSettings("here", batch_size=1)
    assert predict_shards(Source(), single, tmp_path / "one", kind="coco", tell=False)["frames"] == 3


class Timed:
    """An engine whose shards took a quarter of a second, and no time at all."""

    def run(self, build, pieces):
        predictor = build()
        for seconds, (name, piece) in zip((0.25, 0.0), pieces.items(), strict=False):
            yield name, {**predictor(name, piece), "seconds": seconds}


class Launched(Processes):
    """One of two processes, with a shard each; the second one works when the first one waits for it."""

    def __init__(self, rank, out, told):
        super().__init__(rank, 2)
        self.__dict__.update(out=out, told=told)

    def share(self, pieces):
        if self.is_main:
            self.told["left"] = list(pieces.items())
        return dict([self.told["left"][self.rank]])

    def gather(self, value):
        if self.is_main:
            options = {"kind": "coco", "tell": False, "processes": Launched(1, self.out, self.told)}
            self.told["second"] = predict_shards(Source(), PredictionSettings("here"), self.out, **options)
        self.told.setdefault("met", []).append(self.rank)
        return [value] * 2


def test_lines_tell_the_speed_of_a_shard(segmenter, tmp_path, capsys):
    predict_shards(Source(), PredictionSettings("here"), tmp_path, kind="coco", engine=Timed())
    assert capsys.readouterr().out.splitlines() == [
        "first: 2 frames, 8.00 a second, 2 frames skipped",
        "second: 1 frames, 1000000000.00 a second",
    ]


def test_the_first_process_waits_for_the_shards_of_the_others(segmenter, tmp_path):
    told = {}
    options = {"kind": "coco", "tell": False, "processes": Launched(0, tmp_path, told)}
    report = predict_shards(Source(), PredictionSettings("here"), tmp_path, **options)
    assert report["frames"] == 3 and told["second"] is None and told["met"] == [1, 0]
    assert segmenter.batches == [["frame 0", "frame 2"], ["frame 4"]]
