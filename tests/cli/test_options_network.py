"""Every option of the commands that use a network reaches what it is for; see `command_options.py`."""

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from command_options import (
    NAMED,
    Command,
    Model,
    Processor,
    Rows,
    all_options,
    check_no_option_is_left_out,
    check_option_reaches_its_consumer,
    check_the_same_words_give_the_same,
    frame_of,
    plain,
)

from bifusion_hf.results import InstanceSegmentation


@dataclasses.dataclass
class FoundObject:
    id: int
    score: float
    name: str = "object"


class Session:
    """A scene that finds two objects, and fails at its second frame."""

    calls = None

    def __init__(self, model, processor, labeler=None, **options):
        self.calls.seen.append(f"session {plain(options)}")
        self.labeler = labeler
        self.notes, self.num_frames, self.frame_ids, self.bank = {"next": 0}, 0, [], ()
        self.merging, self.threshold, self.voxel_size = SimpleNamespace(name=""), 0, 0

    @classmethod
    def load(cls, path, model, processor, labeler=None):
        session = cls(model, processor, labeler, loaded=str(path))
        return session

    def update(self, frame):
        if self.num_frames == 1:
            raise ValueError("no pose")
        self.num_frames += 1

    def save(self, path):
        self.calls.seen.append("saved")

    def objects(self, min_views):
        self.calls.seen.append(f"objects of {min_views}")
        return [FoundObject(0, 0.5), FoundObject(1, 0.9)]

    def label(self, candidate_labels, top_k):
        self.calls.seen.append(f"{top_k} of {plain(candidate_labels)}")
        return {}

    def find(self, text, top_k):
        self.calls.seen.append(f"find {text}")
        return [SimpleNamespace(item=item, similarity=item.score) for item in self.objects(1)] * 4


class Picture:
    """A picture that is an empty file."""

    def save(self, path, **options):
        Path(path).touch()


class Recording(list):
    posed, kind, ids = True, "frames", ["frame 0", "frame 1"]


def replace_in_evaluate(calls):
    rows = Rows(range(4))
    accelerator = mock.MagicMock(
        process_index=0, num_processes=1, is_main_process=True, device="cpu", mixed_precision="no"
    )
    calls.replace("training.setup.launched_accelerator", accelerator)
    calls.replace("cli.evaluate.use_device")
    calls.replace("cli.evaluate.compare_classes", True)
    calls.replace("hub.pretrained.load_pretrained", lambda name: (Model(calls), Processor()))
    calls.replace("data.frames.load_frames", rows)
    calls.replace("data.dataset.FrameDataset")
    calls.replace("data.recordings.rows.RowScenes")
    calls.replace("data.scannet.scan_mesh.ScanMeshes")
    for name in ("evaluate_model", "evaluate_predictions"):
        calls.replace(f"evaluation.{name}", lambda *args, **options: {"protocol": {}})
    calls.replace("evaluation.scene_evaluator.evaluate_scenes", lambda *args, **options: {"protocol": {}})
    calls.replace("evaluation.PredictionFile", mock.MagicMock(shown="predictions"))
    vocabulary = SimpleNamespace(processor=Processor(), protocol={}, namer=lambda rows: None)
    calls.replace("evaluation.open_vocabulary.OpenVocabulary", lambda *args, **options: vocabulary)
    calls.replace("evaluation.PredictionWriter", mock.MagicMock())
    calls.replace("evaluation.prediction_shards.write_in_shards")
    calls.replace("evaluation.format_results", "")
    calls.replace("evaluation.headline", {})
    calls.replace("evaluation.save_results")


def replace_in_predict(calls):
    rows = Rows(range(4))
    segmenter = mock.MagicMock(processor=Processor())

    def segment(frame, threshold, **naming):
        options = f"estimating up: {segmenter.processor.estimate_up}, {segmenter.processor.shown}"
        calls.seen.append(f"{frame.frame_id} above {threshold}, {options}, {plain(naming)}")
        empty = {"segmentation": frame.depth.astype(int) * 0 - 1, "segments_info": [], "up": None}
        return InstanceSegmentation(empty, frame)

    segmenter.side_effect = segment
    calls.replace("cli.predict.load_segmenter", lambda *args: segmenter)
    calls.replace("results.draw_instances", Picture())
    calls.replace("results.write_ply")
    calls.replace("cli.predict.load_mask_generator")
    calls.replace("cli.predict.superpoints_from_mask_generator", lambda generator, image, depth, intrinsics: None)
    calls.replace("data.frame_files.read_frame", lambda *args, **options: frame_of())
    calls.replace("data.frames.load_frames", rows)
    calls.replace("data.frames.frame_from_row", frame_of)
    calls.replace("data.recordings.open_recording", lambda *args, **options: [frame_of()])
    report = {"frames": 0, "instances": 0, "shards": 0, "skipped": {}}
    calls.replace("prediction.shards.predict_shards", report)


def replace_in_scan(calls):
    calls.patch.setattr(Session, "calls", calls)
    calls.patch.setattr(importlib.import_module("bifusion_hf.scenes"), "SceneSession", Session)
    recording = Recording([frame_of(0), frame_of(1)])
    calls.replace("data.recordings.open_recording", lambda *args, **options: recording)
    calls.replace("hub.pretrained.load_pretrained", lambda name: (Model(calls), Processor()))
    calls.replace("import_utils.require_package")
    for name in ("draw_scene_frame", "write_scene_cloud", "object_to_json", "write_animation"):
        calls.replace(f"scenes.files.{name}", lambda *args: Picture() if len(args) == 2 else "")
    calls.replace("scenes.files.animation_format", lambda kind: kind or "webp")
    calls.replace("scenes.rerun_file.write_rerun")
    # A session that was saved before.
    Path("before").mkdir(exist_ok=True)
    (Path("before") / importlib.import_module("bifusion_hf.cli.scan").SESSION_FILE).touch()


def replace_in_demo_app(calls):
    rows = Rows(range(4))
    calls.replace("cli.demo_app.launch")
    calls.replace("demo.space.write_space", [])
    calls.replace("data.frames.load_frames", rows)
    calls.replace("data.frames.frame_from_row", lambda row: row)
    calls.patch.setattr("bifusion_hf.cli.demo_app.SENSOR_ROWS", ())


MANY = ["--data", "sample", "--output", "out", "--shards", "parquet"]
COMMANDS = {
    "evaluate": Command(
        replace_in_evaluate,
        ["checkpoint", "--data", "sample"],
        {
            "checkpoint": (["other"], None),
            "--checkpoint": (["--checkpoint", "other", "--data", "sample"], None),
            "--data": (["--data", "other"], []),
            "--split": (["--split", "train"], []),
            "--class_agnostic": (["--class_agnostic"], []),
            "--include_95": (["--include_95"], []),
            "--scenes": (["--scenes"], []),
            "--merging": (["--merging", "geometric"], ["--scenes"]),
            "--threshold": (["--threshold", "0.7"], ["--scenes"]),
            "--voxel_size": (["--voxel_size", "0.7"], ["--scenes"]),
            "--meshes": (["--meshes", "other"], ["--scenes", "--meshes", "scans", "--label_map", "labels.tsv"]),
            "--label_map": (["--label_map", "other"], ["--scenes", "--meshes", "scans", "--label_map", "labels.tsv"]),
            "--predictions": (["--data", "sample", "--predictions", "file"], None),
            "--save_predictions": (["--save_predictions", "file"], []),
            "--shard_size": (["--shard_size", "7"], ["--save_predictions", "file"]),
            "--output": (["--output", "file.json"], []),
            "--batch_size": (["--batch_size", "7"], []),
            "--num_workers": (["--num_workers", "7"], []),
            "--limit": (["--limit", "2"], []),
            "--part_gap": (["--part_gap", "0.3"], []),
            "--seed": (["--seed", "7"], []),
            "--candidate_labels": (["--candidate_labels", "chair", "bed"], [*NAMED, "--candidate_labels", "chair"]),
            "--labeler": (["--labeler", "other"], [*NAMED, "--candidate_labels", "chair"]),
            "--labeler_mode": (["--labeler_mode", "dense"], [*NAMED, "--candidate_labels", "chair"]),
            "--templates": (["--templates", "other.txt"], [*NAMED, "--candidate_labels", "chair"]),
            "--label_floor": (["--label_floor", "0.4"], [*NAMED, "--candidate_labels", "chair"]),
            "--mixed_precision": (["--mixed_precision", "bf16"], []),
            "--device": (["--device", "cpu"], []),
            "--cpu": (["--cpu"], []),
        },
        {"checkpoint": ["other", "--data", "sample"]},
    ),
    "predict": Command(
        replace_in_predict,
        [
            *("--image", "color.png", "--depth", "depth.png", "--depth_scale", "1000"),
            *("--intrinsics", "1", "2", "3", "4", "--output", "out"),
        ],
        {
            "--image": (["--image", "other.png"], []),
            "--depth": (["--depth", "other.png"], []),
            "--depth_scale": (["--depth_scale", "5000"], []),
            "--intrinsics": (["--intrinsics", "camera.json"], []),
            "--camera_to_world": (["--camera_to_world", "pose.txt"], []),
            "--camera_up": (["--camera_up"], []),
            "--superpoints": (["--superpoints", "ids.npy"], []),
            "--data": (["--data", "sample", "--output", "out"], None),
            "--split": (["--data", "sample", "--output", "out", "--split", "train"], None),
            "--rows": (["--data", "sample", "--output", "out", "--rows", "1", "2"], None),
            "--recording": (["--recording", "folder", "--output", "out"], None),
            "--every": (["--recording", "folder", "--output", "out", "--every", "3"], None),
            "--limit": (["--recording", "folder", "--output", "out", "--limit", "3"], None),
            "--scene": (["--recording", "folder", "--output", "out", "--scene", "room"], None),
            "--up": (["--recording", "folder", "--output", "out", "--up=-y"], None),
            "--max_difference": (["--recording", "folder", "--output", "out", "--max_difference", "0.5"], None),
            "--checkpoint": (["--checkpoint", "other"], []),
            "--threshold": (["--threshold", "0.9"], []),
            "--mask_generator": (["--mask_generator", "org/sam"], []),
            "--part_gap": (["--part_gap", "0.3"], []),
            "--labels": (["--labels", "chair", "bed"], [*NAMED, "--labels", "chair"]),
            "--labeler": (["--labeler", "other"], [*NAMED, "--labels", "chair"]),
            "--labeler_mode": (["--labeler_mode", "dense"], [*NAMED, "--labels", "chair"]),
            "--templates": (["--templates", "other.txt"], [*NAMED, "--labels", "chair"]),
            "--label_floor": (["--label_floor", "0.4"], [*NAMED, "--labels", "chair"]),
            "--top_k": (["--top_k", "2"], [*NAMED, "--labels", "chair"]),
            "--name_threshold": (["--name_threshold", "0.2"], []),
            "--device": (["--device", "cuda:1"], []),
            "--output": (["--output", "other"], []),
            "--recordings": (["--recordings", "other", "--output", "out", "--shards", "coco"], None),
            "--shards": ([*MANY, "--shards", "coco"], None),
            "--shard_size": ([*MANY, "--shard_size", "7"], None),
            "--batch_size": ([*MANY, "--batch_size", "7"], None),
            "--merge": ([*MANY, "--merge"], None),
            "--workers": ([*MANY, "--workers", "7"], None),
            "--engine": ([*MANY, "--engine", "ray"], None),
            "--address": ([*MANY, "--engine", "ray", "--address", "auto"], None),
        },
    ),
    "scan": Command(
        replace_in_scan,
        ["recording", "--output", "out"],
        {
            "source": (["other"], None),
            "--recording": (["--recording", "other", "--output", "out"], None),
            "--data": (["--data", "other", "--output", "out"], None),
            "--output": (["--output", "other"], []),
            "--checkpoint": (["--checkpoint", "other"], []),
            "--split": (["--split", "train"], []),
            "--every": (["--every", "3"], []),
            "--limit": (["--limit", "3"], []),
            "--scene": (["--scene", "room"], []),
            "--up": (["--up=-y"], []),
            "--max_difference": (["--max_difference", "0.5"], []),
            "--depth_scale": (["--depth_scale", "5000"], []),
            "--intrinsics": (["--intrinsics", "1", "2", "3", "4"], []),
            "--merging": (["--merging", "geometric"], []),
            "--threshold": (["--threshold", "0.9"], []),
            "--min_score": (["--min_score", "0.7"], []),
            "--min_views": (["--min_views", "5"], []),
            "--voxel_size": (["--voxel_size", "0.2"], []),
            "--animation": (["--animation", "gif"], []),
            "--rerun": (["--rerun"], []),
            "--labels": (["--labels", "chair", "bed"], [*NAMED, "--labels", "chair"]),
            "--find": (["--find", "bed"], [*NAMED, "--find", "chair"]),
            "--labeler": (["--labeler", "other"], [*NAMED, "--labels", "chair"]),
            "--labeler_mode": (["--labeler_mode", "dense"], [*NAMED, "--labels", "chair"]),
            "--templates": (["--templates", "other.txt"], [*NAMED, "--labels", "chair"]),
            "--label_floor": (["--label_floor", "0.4"], [*NAMED, "--labels", "chair"]),
            "--top_k": (["--top_k", "2"], [*NAMED, "--find", "chair"]),
            "--save_every": (["--save_every", "1"], []),
            "--strict": (["--strict"], []),
            "--overwrite": (["--overwrite"], ["--output", "before"]),
            "--device": (["--device", "cuda:1"], []),
        },
        {"source": ["other", "--output", "out"]},
    ),
    "demo_app": Command(
        replace_in_demo_app,
        [],
        {
            "--checkpoint": (["--checkpoint", "other"], []),
            "--data": (["--data", "other"], []),
            "--split": (["--split", "train"], []),
            "--rows": (["--rows", "1"], []),
            "--labeler": (["--labeler", "other"], []),
            "--labeler_mode": (["--labeler_mode", "dense"], NAMED),
            "--templates": (["--templates", "other.txt"], NAMED),
            "--label_floor": (["--label_floor", "0.4"], NAMED),
            "--device": (["--device", "cuda:1"], []),
            "--host": (["--host", "0.0.0.0"], []),
            "--port": (["--port", "7"], []),
            "--space": (["--space", "folder"], []),
        },
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_looked_at(command):
    check_no_option_is_left_out(command, COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_words_give_the_same(tmp_path, monkeypatch, command):
    check_the_same_words_give_the_same(command, COMMANDS[command], tmp_path, monkeypatch)


@pytest.mark.parametrize(("command", "option"), all_options(COMMANDS))
def test_option_reaches_its_consumer(tmp_path, monkeypatch, command, option):
    check_option_reaches_its_consumer(command, COMMANDS[command], option, tmp_path, monkeypatch)
