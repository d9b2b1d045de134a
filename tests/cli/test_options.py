"""Every option of every command reaches what it is for.

What the commands call is replaced by something that writes down what it is given (or, where a frame is cheap, what it
makes of it); another value of an option has to change what is written. What comes of it is tested where it is done.
"""

import dataclasses
import importlib
from pathlib import Path
from types import FunctionType, SimpleNamespace
from unittest import mock

import pytest
from frame_factory import make_frame

from bifusion_hf.results import InstanceSegmentation


# Command -> module of bifusion_hf.cli -> option (or positional argument) -> the words that change, and others that
# both runs have beside those of `BASES`.
NAMED = ["--labeler", "clip"]
MANY = ["--data", "sample", "--output", "out", "--shards", "parquet"]
OPTIONS = {
    "prepare_scannet200": {
        "--scans": (["--scans", "other"], []),
        "--esam": (["--esam", "folder"], None),
        "--output": (["--output", "other"], []),
        "--split": (["--split", "val=val.txt"], []),
        "--workers": (["--workers", "3"], []),
        "--scans_per_shard": (["--scans_per_shard", "3"], []),
        "--jpeg_quality": (["--jpeg_quality", "0"], []),
        "--label_map": (["--label_map", "labels.tsv"], []),
        "--labels": (["--labels", "none"], []),
        "--frame_interval": (["--frame_interval", "7"], []),
        "--image_size": (["--image_size", "320", "240"], []),
        "--axis_align": (["--axis_align"], []),
        "--max_label_distance": (["--max_label_distance", "0.5"], []),
        "--assume_registered": (["--assume_registered"], []),
        "--sequences": (["--sequences"], []),
        "--engine": (["--engine", "ray"], []),
        "--address": (["--engine", "ray", "--address", "auto"], ["--engine", "ray"]),
    },
    "import_data": {
        "source": (["other"], None),
        "--output": (["--output", "other"], []),
        "--annotations": (["--annotations", "labels.json"], []),
        "--format": (["--format", "yolo"], []),
        "--instances": (["--instances", "instance"], []),
        "--semantics": (["--semantics", "semantic"], ["--instances", "instance", "--classes", "names.txt"]),
        "--classes": (["--classes", "names.txt"], ["--annotations", "labels.json"]),
        "--unannotated": (["--unannotated", "keep"], []),
        "--skip_unmatched": (["--skip_unmatched"], []),
        "--val": (["--val", "0.5"], []),
        "--val_frames": (["--val_frames", "val.txt"], []),
        "--jpeg_quality": (["--jpeg_quality", "0"], []),
        "--frames_per_shard": (["--frames_per_shard", "7"], []),
        "--workers": (["--workers", "3"], []),
        "--engine": (["--engine", "ray"], []),
        "--address": (["--engine", "ray", "--address", "auto"], ["--engine", "ray"]),
        "--every": (["--every", "3"], []),
        "--limit": (["--limit", "3"], []),
        "--scene": (["--scene", "room"], []),
        "--up": (["--up=-y"], []),
        "--max_difference": (["--max_difference", "0.5"], []),
        "--depth_scale": (["--depth_scale", "5000"], []),
        "--intrinsics": (["--intrinsics", "1", "2", "3", "4"], []),
        "--split": (["--split", "train"], []),
    },
    "render_rooms": {
        "--furniture": (["--furniture", "chairs.sh3f"], []),
        "--output": (["--output", "other"], []),
        "--train": (["--train", "5"], []),
        "--val": (["--val", "5"], []),
        "--width": (["--width", "64"], []),
        "--height": (["--height", "48"], []),
        "--seed": (["--seed", "5"], []),
        "--views": (["--views", "5"], []),
        "--path": (["--path"], []),
        "--libraries": (["--libraries", "Scopia"], ["--furniture", "chairs.sh3f"]),
        "--texture_pack": (["--texture_pack", "miniworld.whl"], []),
        "--photometric": (["--photometric"], []),
        "--world": (["--world", "tabletop"], []),
        "--sensor": (["--sensor", "mixed"], []),
        "--workers": (["--workers", "77"], []),
        "--jpeg_quality": (["--jpeg_quality", "50"], []),
        "--cache": (["--cache", "elsewhere"], []),
        "--engine": (["--engine", "ray"], []),
        "--address": (["--engine", "ray", "--address", "auto"], ["--engine", "ray"]),
    },
    "push_to_hub": {
        "checkpoint": (["other"], None),
        "repo": (["me/other"], None),
        "--type": (["--type", "dataset"], None),
        "--dry_run": (["--dry_run", "folder"], []),
        "--tag": (["--tag", "v1"], []),
        "--public": (["--public"], []),
        "--message": (["--message", "why"], []),
        "--license": (["--license", "mit"], []),
        "--template": (["--template", "card.md"], []),
        "--metrics": (["--metrics", "other.json"], []),
        "--recipe": (["--recipe", "other.yaml"], []),
        "--picture": (["--picture", "picture.png"], []),
        "--base_model": (["--base_model", "org/base"], []),
        "--training_data": (["--training_data", "Rooms"], []),
        "--training_data_license": (["--training_data_license", "mit"], []),
        "--training_data_id": (["--training_data_id", "org/rooms"], []),
        "--evaluation_data": (["--evaluation_data", "Rooms"], []),
        "--evaluation_data_license": (["--evaluation_data_license", "mit"], []),
        "--evaluation_data_id": (["--evaluation_data_id", "org/rooms"], []),
        "--name": (["--name", "Rooms"], ["--type", "dataset"]),
        "--origin": (["--origin", "rendered"], ["--type", "dataset"]),
    },
    "convert_sv3d": {
        "source": (["other.pth"], None),
        "dest": (["elsewhere"], None),
        "--revision": (["--revision", "abc"], []),
        "--allow_partial": (["source.pth", "dest"], None),
        "--voxel_size": (["--voxel_size", "0.1"], []),
        "--num_points": (["--num_points", "7"], []),
        "--decoder_attention_heads": (["--decoder_attention_heads", "2"], []),
        "--output": (["source.pth", "--output", "elsewhere", "--allow_partial"], None),
        "--push_to_hub": (["--push_to_hub", "me/repo"], []),
        "--public": (["--public"], ["--push_to_hub", "me/repo"]),
        "--license": (["--license", "mit"], []),
    },
    "evaluate": {
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
    "predict": {
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
    "scan": {
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
    "demo_app": {
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
}
# What both runs have; None beside an option's words: those words alone against these.
BASES = {
    "prepare_scannet200": ["--scans", "scans", "--output", "out", "--split", "train=train.txt"],
    "import_data": ["source", "--output", "out"],
    "render_rooms": ["--output", "out", "--train", "2", "--workers", "1"],
    "push_to_hub": ["checkpoint", "me/repo"],
    "convert_sv3d": ["source.pth", "dest", "--allow_partial"],
    "evaluate": ["checkpoint", "--data", "sample"],
    "predict": [
        *("--image", "color.png", "--depth", "depth.png", "--depth_scale", "1000"),
        *("--intrinsics", "1", "2", "3", "4", "--output", "out"),
    ],
    "scan": ["recording", "--output", "out"],
    "demo_app": [],
}
# The words of options that take the place of the whole base.
INSTEAD = {
    ("prepare_scannet200", "--esam"): ["--esam", "folder", "--output", "out", "--split", "train"],
    ("import_data", "source"): ["other", "--output", "out"],
    ("push_to_hub", "checkpoint"): ["other", "me/repo", "--metrics", "metrics.json"],
    ("push_to_hub", "repo"): ["checkpoint", "me/other", "--metrics", "metrics.json"],
    ("push_to_hub", "--type"): ["checkpoint", "me/repo", "--type", "dataset"],
    ("convert_sv3d", "source"): ["other.pth", "dest", "--allow_partial"],
    ("convert_sv3d", "dest"): ["source.pth", "elsewhere", "--allow_partial"],
    ("evaluate", "checkpoint"): ["other", "--data", "sample"],
    ("scan", "source"): ["other", "--output", "out"],
}


def plain(value):
    """A value as text that is the same in every run."""
    if value is None or isinstance(value, (str, int, float, Path)):
        return str(value)
    if isinstance(value, (list, tuple, range)):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{plain(key)}: {plain(entry)}' for key, entry in value.items())}}}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and len(dataclasses.fields(value)) < 40:
        return f"{type(value).__name__}({plain(vars(value))})"
    shown = getattr(value, "shown", None)
    return shown if isinstance(shown, str) else type(value).__name__


class Calls:
    """What a command calls.

    Args:
        patch: Puts things in the place of others.
    """

    def __init__(self, patch):
        self.patch = patch
        self.seen = []

    def function(self, name, result=None):
        """A function that writes down its call and gives `result`, or what that makes of the arguments."""

        def call(*args, **options):
            self.seen.append(f"{name}({plain(args)}, {plain(options)})")
            return result(*args, **options) if isinstance(result, FunctionType) else result

        return call

    def replace(self, place, result=None):
        """Puts such a function in the place of one in the package."""
        module, _, name = place.rpartition(".")
        self.patch.setattr(importlib.import_module(f"bifusion_hf.{module}"), name, self.function(name, result))


class Rows(list):
    """Rows of a data set, of which the number can be seen."""

    column_names = ("image",)

    @property
    def shown(self):
        return f"{len(self)} rows"

    def select(self, indices):
        return Rows(self[index] for index in indices)


def frame_of(index=0):
    return make_frame(24, 32, frame_id=f"frame {index}", instance=None, semantic=None)


class Model:
    """A model that goes where it is told."""

    def __init__(self, calls):
        self.calls = calls
        self.config = SimpleNamespace(semantic_id2label={})

    def eval(self):
        return self

    def to(self, device):
        self.calls.seen.append(f"to {device}")
        return self


class Processor:
    def __init__(self):
        self.sampling_seed, self.num_points, self.estimate_up, self.stuff_classes = 0, 5, True, ()
        self.part_gap, self.label_names = 0.05, ("object",)

    @property
    def shown(self):
        return f"processor of seed {self.sampling_seed}, parts {self.part_gap} apart"

    def save_pretrained(self, folder):
        pass


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


def prepare(command, calls):
    """Replaces what the command calls."""
    rows = Rows(range(4))
    calls.replace("batch.open_engine", lambda *args, **options: SimpleNamespace(shown=f"{args} {options}"))
    labeler = SimpleNamespace(settings={"model": "clip"}, templates=("a {}",))
    calls.replace("labeling.TextLabeler", lambda *args, **options: labeler)
    results = {"protocol": {"data": "sample"}}
    if command == "prepare_scannet200":
        for name in ("prepare_scannet200", "prepare_esam"):
            calls.replace(f"cli.prepare_scannet200.{name}", {"splits": {}})
        calls.replace("cli.prepare_scannet200.report_summary", "")
    elif command == "import_data":
        calls.replace("cli.import_data.import_recording", {"splits": {}})
        calls.replace("cli.import_data.report_text", "")
    elif command == "render_rooms":
        calls.replace("cli.render_rooms.require_package")
        calls.replace("cli.render_rooms.build_dataset", {"sha256": {}})
    elif command == "push_to_hub":
        calls.replace("evaluation.results.load_results", results)
        calls.replace("recipe.reading.load_arguments", SimpleNamespace(data=SimpleNamespace(train="sample")))
        calls.replace("cli.push_to_hub.find_recipe", Path("recipe.yaml"))
        calls.replace("hub.model_card.describe_data")
        for name in ("write_model_release", "write_dataset_release"):
            calls.replace(f"hub.release.{name}", lambda folder, *args, **options: None)
        calls.replace("hub.release.publish", SimpleNamespace(tag="", url="", commit=""))
        # The folder of a run is another one each time.
        calls.patch.setattr(importlib.import_module("tempfile"), "TemporaryDirectory", lambda: mock.MagicMock())
    elif command == "convert_sv3d":
        report = SimpleNamespace(missing=["a"], mismatched=[], save=lambda path: None)
        calls.replace("io.checkpoint_files.resolve_file", Path("file.pth"))
        calls.replace("io.checkpoint_files.read_state_dict", {})
        calls.replace("weights.sv3d.find_backbone_prefix", "backbone.")
        calls.replace("weights.sv3d.load_sv3d_weights", report)
        calls.replace("cli.convert_sv3d.read_architecture")
        calls.replace("cli.convert_sv3d.find_provenance", SimpleNamespace(source="source"))
        calls.replace("cli.convert_sv3d.write_card", "card")
        calls.replace("modeling_bifusion.BiFusionForInstanceSegmentation", mock.MagicMock())
        preset = calls.function("from_preset", lambda *args, **options: Processor())
        calls.patch.setattr(
            importlib.import_module("bifusion_hf.processing_bifusion").BiFusionProcessor, "from_preset", preset
        )
        calls.replace("hub.release.publish", SimpleNamespace(url="", commit=""))
        calls.replace("hub.release.check_repo_id")
    elif command == "evaluate":
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
    elif command == "predict":
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
    elif command == "scan":
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
    elif command == "demo_app":
        calls.replace("cli.demo_app.launch")
        calls.replace("demo.space.write_space", [])
        calls.replace("data.frames.load_frames", rows)
        calls.replace("data.frames.frame_from_row", lambda row: row)
        calls.patch.setattr("bifusion_hf.cli.demo_app.SENSOR_ROWS", ())


def observe(command, words, folder, monkeypatch):
    """What a command calls, how it ends and which files it leaves."""
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        calls = Calls(patch)
        prepare(command, calls)
        try:
            importlib.import_module(f"bifusion_hf.cli.{command}").main(words)
        except SystemExit as error:
            calls.seen.append(f"ends with {error.code}")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    contents = [path.read_text() for path in sorted(folder.rglob("*.json"))]
    return [*calls.seen, *files, *contents]


@pytest.fixture(scope="module")
def known():
    """What was observed without the options."""
    return {}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_is_looked_at(command):
    parser = importlib.import_module(f"bifusion_hf.cli.{command}").build_parser()
    names = {action.option_strings[0] if action.option_strings else action.dest for action in parser._actions}
    assert names - {"-h", "--version"} == set(OPTIONS[command])


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command in OPTIONS for option in OPTIONS[command]]
)
def test_option_reaches_its_consumer(tmp_path, monkeypatch, known, command, option):
    words, beside = OPTIONS[command][option]
    base = [*BASES[command], *(beside or [])]
    if command == "push_to_hub" and "dataset" not in base:
        base += ["--metrics", "metrics.json"]
    words = INSTEAD.get((command, option), words if beside is None else [*base, *words])
    key = (command, *base)
    if key not in known:
        known[key] = observe(command, base, tmp_path / "before", monkeypatch)
    found = observe(command, words, tmp_path / "after", monkeypatch)
    # 2 is a usage error.
    assert "ends with 2" not in found + known[key] and found != known[key], "\n".join(found)
