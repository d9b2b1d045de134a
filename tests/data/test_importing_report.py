"""What an import says of itself, which frames are for validation, and what makes it another import."""

from types import SimpleNamespace

import numpy as np
import pytest
from recording_files import make_frames, save_image, write_folders

from bifusion_hf.data import importing
from bifusion_hf.data.frames import load_frames
from bifusion_hf.data.importing import LabelOptions, RecordingRows, import_recording, report_text


@pytest.fixture
def desk(tmp_path):
    write_folders(tmp_path / "desk", make_frames(5), poses=False)
    return tmp_path / "desk"


def ids(folder, split):
    return load_frames(folder, split)["frame_id"]


def test_a_report_is_text_for_people():
    frames = [f"desk_{index}" for index in range(6)]
    report = {
        "classes": ["wall", "floor", "mug"],
        "splits": {
            "train": {
                "frames": 4,
                "notes": {"objects of mug": 3, "frames without labels": 1},
                "skipped": [{"frame_id": "desk_9", "reason": "unreadable", "detail": "9.png: no picture"}],
                "failed": {"desk_8": "8.png: no labels"},
            },
            "val": {"frames": 1, "notes": {}, "skipped": [], "failed": {}},
        },
        "unannotated": frames,
        "unmatched": frames[:5],
    }
    assert report_text(report).splitlines() == [
        "classes: 3 of its own: wall, floor, mug",
        "train: 4 frames",
        "  frames without labels: 1",
        "  objects of mug: 3",
        "  skipped, unreadable: 9.png: no picture",
        "  failed: 8.png: no labels",
        "val: 1 frames",
        "frames without annotations: 6: desk_0, desk_1, desk_2, desk_3, desk_4, ...",
        "annotations without a frame, left out: 5: desk_0, desk_1, desk_2, desk_3, desk_4",
    ]
    bare = {"classes": "ScanNet200", "splits": {}, "unannotated": [], "unmatched": []}
    assert report_text(bare) == "classes: ScanNet200\n"


def test_the_settings_that_are_published_name_no_folder_of_this_machine(desk, tmp_path):
    report = import_recording(desk, tmp_path / "out", depth_scale=1000, progress=False)
    nothing = dict.fromkeys(("annotations", "instances", "semantics", "classes"))
    assert report["settings"] == {
        "source": "desk",
        "frames": [5, "desk_0", "desk_40"],
        "options": {},
        "labels": {**nothing, "kind": "auto"},
        "jpeg_quality": 95,
    }
    assert report["unmatched"] == report["unannotated"] == [] and report["classes"] == "ScanNet200"
    # Other options would give other frames, so they do not go on with these.
    with pytest.raises(ValueError, match="begun with another options"):
        import_recording(desk, tmp_path / "out", depth_scale=500, progress=False)
    # Files may be given by their paths; the report is for people to read.
    desk.rename(tmp_path / "Büro")
    camera = tmp_path / "Büro" / "intrinsic.txt"
    report = import_recording(tmp_path / "Büro", tmp_path / "one", limit=1, intrinsics=camera, progress=False)
    assert {split: part["frames"] for split, part in report["splits"].items()} == {"train": 1}
    assert '"source": "Büro"' in (tmp_path / "one" / "report.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("val", "count"), [(0, 0), (0.01, 1), (0.5, 2), (0.7, 4), (0.99, 4), (1, 5)], ids=lambda value: str(value)
)
def test_a_share_is_one_frame_at_least_and_leaves_one(desk, tmp_path, monkeypatch, val, count):
    found = {}

    def write(rows, splits, *others, **options):
        found.update(splits)
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "write_shards", write)
    with pytest.raises(KeyboardInterrupt):
        import_recording(desk, tmp_path / "out", val=val)
    frames = [f"desk_{10 * index}" for index in range(5)]
    expected = {"train": frames[: 5 - count], "val": frames[5 - count :]}
    assert found == {split: names for split, names in expected.items() if names}
    # Of every second frame, those of the list that are taken.
    (tmp_path / "val.txt").write_text("./color/20.PNG\n../desk/color/10.png\n\n")
    found.clear()
    with pytest.raises(KeyboardInterrupt):
        import_recording(desk, tmp_path / "out", val=val, val_frames=tmp_path / "val.txt", every=2)
    assert found == {"train": ["desk_0", "desk_40"], "val": ["desk_20"]}


def test_shards_are_made_as_they_are_asked_for(desk, tmp_path, monkeypatch):
    asked = []

    def write(rows, splits, out, settings, **options):
        asked.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(importing, "write_shards", write)
    engine = object()
    chosen = {"workers": 3, "engine": engine, "progress": False}
    for options in ({}, {"frames_per_shard": 7, **chosen}):
        with pytest.raises(KeyboardInterrupt):
            import_recording(desk, tmp_path / "out", **options)
    default = {"units_per_shard": 100, "workers": 1, "engine": None, "progress": True}
    assert asked == [
        {**default, "unit": "frame", "beside": {}},
        {"units_per_shard": 7, **chosen, "unit": "frame", "beside": {}},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": -0.1}, r"val is -0.1; expected a share of the frames, 0 to 1"),
        ({"jpeg_quality": 0}, r"jpeg_quality is 0; expected 1..100 or None"),
    ],
)
def test_arguments_below_their_range_are_refused(desk, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        import_recording(desk, tmp_path / "out", **options)


@pytest.mark.parametrize("quality", [1, 100])
def test_a_jpeg_may_be_of_any_quality(desk, tmp_path, quality):
    import_recording(desk, tmp_path / "out", jpeg_quality=quality, every=3, val=0, progress=False)
    assert ids(tmp_path / "out", "train") == ["desk_0", "desk_30"]


def test_depth_beyond_what_is_stored_leaves_a_frame_out(desk, tmp_path, capsys):
    depth = np.full((24, 32), 2000, np.uint16)
    depth[3, 4] = 65000
    save_image(desk / "depth" / "30.png", depth)
    report = import_recording(desk, tmp_path / "out", depth_scale=900, val=0)
    assert "5/5" in capsys.readouterr().err, "a bar tells how far it is"
    (skipped,) = report["splits"]["train"]["skipped"]
    assert (skipped["frame_id"], skipped["reason"]) == ("desk_30", "out of range")
    assert skipped["detail"] == "desk_30: values 2222.0..72222.0 do not fit 16 bits"
    assert report["splits"]["train"]["notes"] == {"frames without labels": 5}


def test_frames_of_one_name_are_refused(desk, tmp_path, monkeypatch):
    recording = SimpleNamespace(ids=["a", "b", "c", "b", "b", "c"])
    monkeypatch.setattr(importing, "open_recording", lambda place: recording)
    with pytest.raises(ValueError, match=r"desk: has 3 frames named 'b'; expected one"):
        import_recording(desk, tmp_path / "out")


def test_names_of_scannet200_may_be_asked_for(tmp_path):
    options = LabelOptions("labels.json", classes="scannet200")
    assert len(options.class_names(["chair", "table"])) == 200
    with pytest.raises(ValueError, match=r"labels.json: 'mug' is no class of ScanNet200$"):
        options.class_names(["chair", "mug"])
    assert LabelOptions("labels.json").class_names(["mug"]) == ("wall", "floor", "mug")
    with pytest.raises(ValueError, match="semantics needs instances, and classes: a file"):
        LabelOptions(instances="instance", semantics="semantic", classes="scannet200")
    with pytest.raises(ValueError, match="classes names those of annotations or semantics"):
        LabelOptions(instances="instance", classes=tmp_path / "names.txt")
    assert LabelOptions().open() is None


def test_an_open_recording_stays_where_it_is(desk):
    rows = RecordingRows(desk, {}, LabelOptions(), {}, {}, 95)
    assert rows.places == {f"desk_{10 * index}": index for index in range(5)} and rows.annotations is None
    state = rows.__getstate__()
    assert set(state) == {"place", "options", "labels", "names", "classes", "jpeg_quality"}
