import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from processes import another_in
from scannet_files import (
    BOX,
    COLOR_INTRINSICS,
    DEPTH_INTRINSICS,
    DEPTH_SIZE,
    LABEL_MAP,
    OBJECTS,
    axis_alignment,
    color_view,
    depth_view,
    pose,
    scan_info,
    view,
    write_annotation,
    write_exported_scan,
    write_label_images,
    write_sens_scan,
)

from bifusion_hf.data.frames import RGBDFrame, frame_from_row, frame_to_row, load_frames
from bifusion_hf.data.scannet import preparation, prepare_scannet200
from bifusion_hf.data.scannet.card import dataset_card
from bifusion_hf.data.scannet.preparation import read_split_list, report_summary, report_text, write_data_set
from bifusion_hf.data.scannet.registration import register_color
from bifusion_hf.data.scannet.shards import SkippedFrame
from bifusion_hf.data.scannet.source import ScanNetSource
from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.locks import FolderInUseError


INVALID = np.full((4, 4), -np.inf)
POSES = [pose(), pose(0.1), INVALID, pose(0.3, (0.1, -0.2, 1.5))]
CLASSES = np.array([index for _, _, index in OBJECTS] + [-1])


@pytest.fixture
def scans(tmp_path):
    """Two scans as `.sens`, one exported with 2D labels, one exported without any; lists and label table."""
    folder = tmp_path / "scans"
    write_sens_scan(folder / "scene0000_00", POSES)
    write_sens_scan(folder / "scene0000_01", POSES[:2], color_type=1, depth_type=0)
    exported = {0: pose(), 1: pose(0.2), 2: pose(-0.2)}
    write_exported_scan(folder / "scene0001_00", exported)
    write_label_images(folder / "scene0001_00", exported, zipped=True)
    write_exported_scan(folder / "scene0002_00", exported)
    (tmp_path / "labels.tsv").write_text(LABEL_MAP)
    (tmp_path / "train.txt").write_text("scene0000_00\nscene0000_01\n")
    (tmp_path / "val.txt").write_text("scene0001_00\nscene0002_00\n")
    return folder


def prepare(scans, out="out", **options):
    root = scans.parent
    defaults = {"label_map": root / "labels.tsv", "frame_interval": 1, "progress": False, "jpeg_quality": None}
    lists = {"train": root / "train.txt", "val": root / "val.txt"}
    return prepare_scannet200(scans, root / out, options.pop("lists", lists), **defaults | options)


def frames_of(folder, split):
    return {frame.frame_id: frame for frame in map(frame_from_row, load_frames(folder, split))}


def test_frames_are_those_of_the_scans(scans):
    report = prepare(scans)
    train = frames_of(scans.parent / "out", "train")
    assert sorted(train) == ["scene0000_00_0", "scene0000_00_1", "scene0000_00_3", "scene0000_01_0", "scene0000_01_1"]
    frame = train["scene0000_00_3"]
    np.testing.assert_array_equal(np.rint(1000 * frame.depth), depth_view(POSES[3]))
    np.testing.assert_allclose(frame.intrinsics, DEPTH_INTRINSICS, rtol=1e-6)
    np.testing.assert_allclose(frame.camera_to_world, POSES[3], atol=1e-6)
    # This scan's colours are stored without loss.
    color = register_color(color_view(pose(0.1)), COLOR_INTRINSICS, DEPTH_INTRINSICS, DEPTH_SIZE)
    assert np.abs(train["scene0000_01_1"].image.astype(int) - color).max() <= 1
    for name, frame in train.items():
        ids = view(frame.camera_to_world, DEPTH_INTRINSICS, DEPTH_SIZE)[1]
        expected = np.where(ids == 3, -1, ids)
        assert (frame.instance == expected).mean() > 0.96, name
        assert (frame.semantic == CLASSES[ids]).mean() > 0.96
        assert frame.superpoints is None
    assert report["splits"]["train"]["notes"] == {"labels: mesh": 2}


def test_a_preparation_in_progress_is_not_joined(scans):
    with another_in(scans.parent / "out"), pytest.raises(FolderInUseError, match="out is in use by process"):
        prepare(scans)
    assert not list((scans.parent / "out").rglob("*.parquet"))


def test_labels_of_the_2d_images_and_of_none(scans):
    report = prepare(scans)
    val = frames_of(scans.parent / "out", "val")
    assert report["splits"]["val"]["notes"] == {"labels: 2d": 1, "labels: none": 1}
    frame = val["scene0001_00_1"]
    ids = view(frame.camera_to_world, DEPTH_INTRINSICS, DEPTH_SIZE)[1]
    assert (frame.instance == np.where(ids == 3, -1, ids)).mean() > 0.96
    assert (frame.semantic == CLASSES[ids]).mean() > 0.96
    assert val["scene0002_00_1"].instance is None
    assert val["scene0002_00_1"].semantic is None


def test_skipped_frames_are_reported_with_the_reason(scans):
    folder = scans / "scene0001_00"
    (folder / "depth" / "0.png").write_bytes(b"\x89PNG")
    (folder / "pose" / "1.txt").write_text("1 2 3")
    np.savetxt(folder / "pose" / "2.txt", 2 * np.eye(4))
    report = prepare(scans, lists={"train": scans.parent / "train.txt", "val": scans.parent / "val.txt"})
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert train["skipped_by_reason"] == {"invalid pose": 1}
    assert train["skipped"][0]["frame_id"] == "scene0000_00_2"
    assert val["skipped_by_reason"] == {"unreadable": 2, "malformed": 1}
    details = {item["frame_id"]: item["detail"] for item in val["skipped"]}
    assert "depth/0.png: is no readable PNG" in details["scene0001_00_0"]
    assert "pose/1.txt: has 3 numbers" in details["scene0001_00_1"]
    assert "rigid pose" in details["scene0001_00_2"]
    assert json.loads((scans.parent / "out" / "report.json").read_text()) == report
    text = (scans.parent / "out" / "report.txt").read_text()
    assert "skipped, unreadable: 2 frames" in text
    assert details["scene0001_00_1"] in text


def test_an_empty_depth_image_is_skipped(scans):
    write_sens_scan(scans / "scene0003_00", [pose(0, (0, 3.1999, 1)), pose()])
    # So near before the wall that its depth rounds to 0 mm, but for none of its pixels.
    assert np.count_nonzero(depth_view(pose(0, (0, 3.1999, 1)))) == 0
    (scans.parent / "val.txt").write_text("scene0003_00\n")
    report = prepare(scans)
    assert report["splits"]["val"]["skipped_by_reason"] == {"empty depth": 1}
    assert report["splits"]["val"]["frames"] == 1


def test_interval_listed_frames_and_missing_ones(scans):
    root = scans.parent
    report = prepare(scans, "interval", frame_interval=2)
    assert sorted(frames_of(root / "interval", "train")) == ["scene0000_00_0", "scene0000_01_0"]
    assert report["settings"]["frame_interval"] == 2 and "frame_numbers" not in report["settings"]
    (root / "val.txt").write_text("scene0001_00_1 \nscene0001_00_77\n\n\tscene0002_00_0\n")
    report = prepare(scans, "listed", frame_interval=2)
    assert sorted(frames_of(root / "listed", "val")) == ["scene0001_00_1", "scene0002_00_0"]
    assert report["splits"]["val"]["skipped_by_reason"] == {"missing": 1}


def test_image_size_scales_everything_together(scans):
    prepare(scans, image_size=(32, 24))
    frame = frames_of(scans.parent / "out", "train")["scene0000_00_3"]
    assert frame.image.shape == (24, 32, 3)
    assert frame.depth.shape == frame.instance.shape == frame.semantic.shape == (24, 32)
    ids = view(frame.camera_to_world, frame.intrinsics, (32, 24))[1]
    assert (frame.instance == np.where(ids == 3, -1, ids)).mean() > 0.93
    depth = view(frame.camera_to_world, frame.intrinsics, (32, 24))[0]
    assert np.median(np.abs(frame.depth - depth) / depth) < 0.01
    with pytest.raises(ValueError, match="no frame"):
        prepare(scans, "other", image_size=(32, 32))
    assert "expected the same aspect" in (scans.parent / "other" / "report.txt").read_text()


def test_axis_alignment_turns_the_poses_alone(scans):
    root = scans.parent
    (root / "val.txt").write_text("scene0000_01\n")
    (root / "train.txt").write_text("scene0000_00\n")
    prepare(scans, "raw")
    prepare(scans, "aligned", axis_align=True)
    raw, aligned = (frames_of(root / name, "train")["scene0000_00_3"] for name in ("raw", "aligned"))
    np.testing.assert_allclose(aligned.camera_to_world, axis_alignment() @ raw.camera_to_world, atol=1e-5)
    np.testing.assert_array_equal(aligned.instance, raw.instance)
    np.testing.assert_array_equal(aligned.depth, raw.depth)
    # The box stands where the aligned world has it.
    points = raw.unproject()[raw.instance == 2]
    assert points.min(axis=0)[2] > -0.05
    assert np.all(points.max(axis=0) < BOX[1] + 0.05)


def test_a_scan_that_cannot_be_read_is_reported_and_remade(scans):
    path = scans / "scene0000_01" / "scene0000_01.sens"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    report = prepare(scans, scans_per_shard=1)
    assert list(report["splits"]["train"]["failed"]) == ["scene0000_01"]
    assert "cut short" in report["splits"]["train"]["failed"]["scene0000_01"]
    assert "failed: " + str(path) in (scans.parent / "out" / "report.txt").read_text()
    shards = scans.parent / "out" / "data"
    before = (shards / "train-00000-of-00002.parquet").stat().st_mtime_ns
    path.write_bytes(content)
    report = prepare(scans, scans_per_shard=1)
    assert report["splits"]["train"]["failed"] == {}
    assert report["splits"]["train"]["frames"] == 5
    assert (shards / "train-00000-of-00002.parquet").stat().st_mtime_ns == before
    assert len(frames_of(scans.parent / "out", "train")) == 5


def test_labels_asked_for_have_to_be_there(scans):
    (scans / "scene0000_00" / "scene0000_00.aggregation.json").unlink()
    report = prepare(scans, labels="mesh", lists={"train": scans.parent / "train.txt"})
    assert "aggregation.json: No such file" in report["splits"]["train"]["failed"]["scene0000_00"]
    with pytest.raises(ValueError, match="label_map is missing"):
        prepare(scans, label_map=None)
    report = prepare(scans, "none", label_map=None, labels="none")
    assert report["splits"]["train"]["notes"] == {"labels: none": 2}


def test_jpeg(scans):
    prepare(scans, jpeg_quality=90)
    row = load_frames(scans.parent / "out", "train")[0]
    assert row["image"]["bytes"].startswith(b"\xff\xd8")
    expected = register_color(color_view(pose()), COLOR_INTRINSICS, DEPTH_INTRINSICS, DEPTH_SIZE)
    assert np.abs(frame_from_row(row).image.astype(int) - expected).mean() < 3


def test_load_dataset_on_the_folder(scans, tmp_path):
    prepare(scans, scans_per_shard=1)
    out = str(scans.parent / "out")
    loaded = datasets.load_dataset(out, cache_dir=str(tmp_path / "cache"))
    assert {split: part.num_rows for split, part in loaded.items()} == {"train": 5, "val": 6}
    assert frame_from_row(loaded["train"][0]).frame_id == "scene0000_00_0"
    stream = datasets.load_dataset(out, split="val", streaming=True, cache_dir=str(tmp_path / "cache"))
    names = [frame_from_row(row).frame_id for row in stream]
    assert names == [f"{scan}_{number}" for scan in ("scene0001_00", "scene0002_00") for number in range(3)]
    assert stream.features == loaded["val"].features
    card = (scans.parent / "out" / "README.md").read_text()
    assert "| train | 2 | 5 | 1 | 0 |" in card
    assert "forbid" in card


def test_row_groups_are_small_enough_to_stream(scans, monkeypatch):
    monkeypatch.setattr("bifusion_hf.data.scannet.shards.ROW_GROUP", 2)
    prepare(scans)
    file = pq.ParquetFile(next((scans.parent / "out" / "data").glob("train-*.parquet")))
    assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("scene0000_00\nroom3\n", "'room3'"),
        ("scene0000_00\nscene0000_00\n", "twice"),
        ("scene0000_00\nscene0000_00_20\n", "twice"),
        ("../scene0000_00\n", "expected scene0000_00"),
    ],
)
def test_malformed_lists(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataFileError, match=message):
        read_split_list(tmp_path / "list.txt")


def test_scans_and_frames_of_a_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("scene0002_00\n scene0001_00_40\nscene0000_01 \n\nscene0001_00_7\nscene0001_00_40\n")
    scans = ["scene0002_00", "scene0001_00", "scene0000_01"]
    assert read_split_list(path) == (scans, {"scene0001_00": (40, 7)})


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {
            "labels": "2d", "frame_interval": 40, "image_size": (32, 24), "axis_align": True,
            "max_label_distance": 0.1, "jpeg_quality": None, "assume_registered": True, "sequences": True,
            "scans_per_shard": 3, "workers": 2, "engine": "an engine", "progress": False,
        },
    ],
)  # fmt: skip
def test_arguments_arrive_where_they_belong(changed, tmp_path, monkeypatch):
    """At the reader of scans, in the settings that a data set is begun with, and at the writer of shards."""
    (tmp_path / "labels.tsv").write_text(LABEL_MAP)
    (tmp_path / "list.txt").write_text("scene0000_00\nscene0001_00_7\n")
    written = []
    monkeypatch.setattr(preparation, "write_data_set", lambda *found, **options: written.append((*found, options)))
    lists = {"train": tmp_path / "list.txt"}
    prepare_scannet200(tmp_path, "out", lists, label_map=tmp_path / "labels.tsv", **changed)
    ((source, splits, out, settings, options),) = written
    assert (splits, out) == ({"train": ["scene0000_00", "scene0001_00"]}, "out")
    expected = {
        "labels": "auto", "frame_interval": 200, "image_size": None, "axis_align": False, "max_label_distance": 0.05,
        "jpeg_quality": 95, "assume_registered": False,
    }  # fmt: skip
    expected = {**expected, **{name: value for name, value in changed.items() if name in {*expected, "sequences"}}}
    numbers = {"scene0001_00": (7,)}
    assert settings == {**expected, "frame_numbers": numbers}
    ids = {"wall": 1, "chair": 2, "floor": 3, "stack of chairs": 2, '5" picture': 1357}
    assert source == ScanNetSource(tmp_path, ids, frame_numbers=numbers, **expected)
    assert options == {
        "units_per_shard": changed.get("scans_per_shard", 16),
        "workers": changed.get("workers", 1),
        "engine": changed.get("engine"),
        "progress": changed.get("progress", True),
    }


class UnitsOfOne:
    """A frame for each unit, or none."""

    sequences = False

    def rows(self, unit):
        if unit == "none":
            yield SkippedFrame("none_0", "missing", "not there")
            return
        intrinsics = np.array([[10.0, 0, 7.5], [0, 10, 5.5], [0, 0, 1]])
        frame = RGBDFrame(np.zeros((12, 16, 3), np.uint8), np.ones((12, 16)), intrinsics, frame_id=unit)
        yield frame_to_row(frame)


def test_a_data_set_has_its_report_and_its_card(tmp_path):
    settings = {"labels": "auto", "frame_numbers": {"a": (1,)}}
    report = write_data_set(UnitsOfOne(), {"val": ["a"]}, tmp_path / "a", settings, progress=False)
    val = {"scans": 1, "frames": 1, "notes": {}, "skipped_by_reason": {}, "skipped": [], "failed": {}}
    assert report == {"settings": {"labels": "auto"}, "splits": {"val": val}}
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == report
    assert (tmp_path / "a" / "report.txt").read_text() == report_text(report)
    assert (tmp_path / "a" / "README.md").read_text() == dataset_card(report)
    with pytest.raises(ValueError, match=r"split 'none' has no frame; .*/b/report\.txt has the reasons"):
        write_data_set(UnitsOfOne(), {"val": ["a"], "none": ["none"]}, tmp_path / "b", settings, progress=False)
    assert "  none_0 (missing): not there\n" in (tmp_path / "b" / "report.txt").read_text()
    assert not (tmp_path / "b" / "README.md").exists()


def test_reports_in_text():
    item = {"frame_id": "a_2", "reason": "empty depth", "detail": "a: frame 2"}
    part = {"scans": 3, "frames": 7, "notes": {"labels: none": 1, "labels: mesh": 2}, "failed": {"b": "b: no file"}}
    val = {"scans": 1, "frames": 2, "notes": {}, "failed": {}, "skipped": [], "skipped_by_reason": {}}
    train = {**part, "skipped": [item], "skipped_by_reason": {"empty depth": 1}}
    summary = (
        "train: 7 frames of 3 scans\n  labels: mesh: 2 scans\n  labels: none: 1 scans\n"
        "  skipped, empty depth: 1 frames\n  failed: b: no file\nval: 2 frames of 1 scans\n"
    )
    report = {"settings": {"labels": "auto", "jpeg_quality": None}, "splits": {"train": train, "val": val}}
    assert report_summary(report) == summary
    end = "\nSkipped frames\n  a_2 (empty depth): a: frame 2\n"
    assert report_text(report) == summary + "\nlabels: auto\njpeg_quality: None\n" + end
    report["splits"] = {"val": val}
    assert report_text(report) == "val: 2 frames of 1 scans\n\nlabels: auto\njpeg_quality: None\n"


def test_a_card_has_every_split():
    parts = {
        "val": {"scans": 1, "frames": 2, "skipped": [], "failed": {}},
        "train": {"scans": 3, "frames": 7, "skipped": [1, 2], "failed": {"b": "b: no file"}},
    }
    card = dataset_card({"splits": parts, "settings": {"labels": "auto", "jpeg_quality": None}})
    assert (
        "  - split: val\n    path: data/val-*.parquet\n  - split: train\n    path: data/train-*.parquet\n---" in card
    )
    assert "| val | 1 | 2 | 0 | 0 |\n| train | 3 | 7 | 2 | 1 |\n" in card
    assert 'load_dataset("path/to/this/folder", split="val")' in card
    assert "## Settings\n\n- labels: auto\n- jpeg_quality: None\n" in card


def test_malformed_arguments(scans):
    root = scans.parent
    same = {"train": root / "train.txt", "val": root / "train.txt"}
    for options, message in (
        ({"lists": {}}, "split_lists is empty"),
        ({"lists": same}, "scene0000_00 of another split"),
        ({"lists": {"a/b": root / "train.txt"}}, "named 'a/b'"),
        ({"labels": "3d"}, "labels is '3d'"),
        ({"frame_interval": 0}, "frame_interval is 0"),
        ({"image_size": (0, 3)}, "image_size"),
        ({"image_size": (3, 0)}, "image_size"),
        ({"jpeg_quality": 101}, "jpeg_quality is 101"),
        ({"jpeg_quality": 0}, "jpeg_quality is 0"),
        # What is looked at after these is all that is wrong.
        ({"image_size": (1, 5), "lists": {}}, "split_lists is empty"),
        ({"jpeg_quality": 1, "lists": {}}, "split_lists is empty"),
        ({"jpeg_quality": 100, "lists": {}}, "split_lists is empty"),
        ({"frame_interval": 1, "lists": {}}, "split_lists is empty"),
        ({"labels": "mesh", "label_map": None, "lists": {}}, "label_map is missing"),
        ({"workers": 0}, "workers 0"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(scans, **options)


def test_a_split_without_frames_is_an_error(scans):
    (scans.parent / "val.txt").write_text("scene0009_00\n")
    with pytest.raises(ValueError, match="split 'val' has no frame"):
        prepare(scans)
    assert "scene0009_00: no such folder" in (scans.parent / "out" / "report.txt").read_text()


def test_scan_information_with_intrinsics_is_not_used_for_them(scans):
    """The `.txt` has those of the sensor before registration (`fx_depth = 55` here)."""
    folder = scans / "scene0002_00"
    (folder / f"{folder.name}.txt").write_text(scan_info(axis_alignment()))
    write_annotation(scans / "scene0001_00")
    prepare(scans)
    frames = frames_of(scans.parent / "out", "val")
    assert frames
    for frame in frames.values():
        np.testing.assert_allclose(frame.intrinsics, DEPTH_INTRINSICS, rtol=1e-5)
