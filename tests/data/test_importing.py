import json
import pickle

import numpy as np
import pytest
from frame_factory import BED, CHAIR, TABLE
from recording_files import HEIGHT, WIDTH, make_frames, save_image, write_folders, write_frame_folders, write_tum

from bifusion_hf.data.class_names import read_classes
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.data.importing import LabelOptions, RecordingRows, import_recording
from bifusion_hf.data.recordings import open_recording
from bifusion_hf.io.files import DataFileError


NAMES = ["mug", "drill"]
SQUARE = [4, 6, 12, 6, 12, 16, 4, 16]


def write_coco(path, names, categories=NAMES, label=2):
    """A square in each image."""
    content = {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
        "annotations": [
            {"image_id": i, "category_id": label, "segmentation": [SQUARE], "iscrowd": 0} for i in range(len(names))
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def desk(tmp_path):
    """A recording of five frames, 0, 10, ..., 40, and a square in each, by COCO."""
    write_folders(tmp_path / "desk", make_frames(5), poses=False)
    write_coco(tmp_path / "labels.json", [f"color/{10 * index}.png" for index in range(5)])
    return tmp_path


def bring(folder, *, out="out", source="desk", annotations="labels.json", **options):
    labels = LabelOptions(None if annotations is None else folder / annotations, **options.pop("labels", {}))
    return import_recording(folder / source, folder / out, labels=labels, progress=False, **options)


def frames_of(folder, split, out="out"):
    return [frame_from_row(row) for row in load_frames(folder / out, split)]


def test_frames_and_labels_arrive(desk):
    report = bring(desk)
    assert {split: part["frames"] for split, part in report["splits"].items()} == {"train": 4, "val": 1}
    assert report["splits"]["train"]["notes"] == {"objects of drill": 4}
    assert read_classes(desk / "out") == ("wall", "floor", "mug", "drill")
    found, written = [*frames_of(desk, "train"), *frames_of(desk, "val")], open_recording(desk / "desk")
    assert [frame.frame_id for frame in found] == list(written.ids)
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[6:16, 4:12] = True
    for frame, source in zip(found, written, strict=True):
        np.testing.assert_array_equal(frame.depth, source.depth)
        np.testing.assert_array_equal(frame.intrinsics, source.intrinsics)
        assert np.abs(frame.image.astype(int) - source.image).mean() < 8 and frame.camera_to_world is None
        np.testing.assert_array_equal(frame.instance, np.where(inside, 0, -1))
        np.testing.assert_array_equal(frame.semantic, np.where(inside, 3, -1))
    assert str(desk) not in (desk / "out" / "report.json").read_text()
    text = (desk / "out" / "report.txt").read_text()
    assert "classes: 4 of its own: wall, floor, mug, drill" in text and "objects of drill: 4" in text


def test_names_of_scannet200_keep_its_numbers(desk):
    write_coco(desk / "labels.json", ["0.jpg"], categories=["chair", "table"])
    assert bring(desk, val=0)["classes"] == "ScanNet200"
    (frame,) = frames_of(desk, "train")
    assert set(np.unique(frame.semantic)) == {-1, TABLE} and not (desk / "out" / "classes.json").exists()
    write_coco(desk / "labels.json", ["0.jpg"], categories=["chair", "tabel"])
    with pytest.raises(ValueError, match=r"'tabel' is no class of ScanNet200 \(did you mean 'table'"):
        bring(desk, out="other", labels={"classes": "scannet200"})


def test_the_last_frames_are_for_validation(desk):
    bring(desk, val=0.4, jpeg_quality=None)
    assert [frame.frame_id for frame in frames_of(desk, "val")] == ["desk_30", "desk_40"]
    np.testing.assert_array_equal(frames_of(desk, "val")[0].image, open_recording(desk / "desk")[3].image)
    bring(desk, out="all", val=1)
    assert len(frames_of(desk, "val", "all")) == 5 and not list((desk / "all" / "data").glob("train*"))
    (desk / "val.txt").write_text("0.png\n\ndesk_20\n")
    bring(desk, out="listed", val_frames=desk / "val.txt")
    assert [frame.frame_id for frame in frames_of(desk, "val", "listed")] == ["desk_0", "desk_20"]
    (desk / "val.txt").write_text("0\n5\n")
    with pytest.raises(DataFileError, match=r"val.txt \(line 2\): '5' is no frame"):
        bring(desk, out="wrong", val_frames=desk / "val.txt")


def test_frames_without_annotations(desk):
    write_coco(desk / "labels.json", ["10", "C:\\export\\color\\30.png"])
    report = bring(desk, val=0)
    assert report["unannotated"] == ["desk_0", "desk_20", "desk_40"]
    assert [frame.frame_id for frame in frames_of(desk, "train")] == ["desk_10", "desk_30"]
    assert "frames without annotations: 3: desk_0, desk_20, desk_40" in (desk / "out" / "report.txt").read_text()
    kept = bring(desk, out="kept", val=0, unannotated="keep")
    assert kept["splits"]["train"]["notes"] == {"frames without labels": 3, "objects of drill": 2}
    assert [frame.instance is None for frame in frames_of(desk, "train", "kept")] == [True, False, True, False, True]
    with pytest.raises(ValueError, match="3 frames have no annotations: desk_0, desk_20, desk_40"):
        bring(desk, out="refused", unannotated="refuse")
    with pytest.raises(ValueError, match="no frame is left of 5"):
        bring(desk, out="none", limit=1)
    assert not (desk / "refused").exists() and not (desk / "none").exists()


def test_annotations_that_match_no_frame(desk):
    write_coco(desk / "labels.json", ["color/0.png", "color/7.png", "other/8.png"])
    with pytest.raises(ValueError, match=r"2 of 3 annotated images are of no frame: color/7.png, other/8.png; the 5"):
        bring(desk)
    with pytest.raises(ValueError, match=r"the 5 frames are of color/0, color/10, color/20, color/30, color/40$"):
        bring(desk)
    report = bring(desk, skip_unmatched=True, val=0)
    assert report["unmatched"] == ["color/7.png", "other/8.png"] and len(frames_of(desk, "train")) == 1
    write_coco(desk / "labels.json", ["7.png"])
    with pytest.raises(ValueError, match="1 of 1 annotated images are of no frame"):
        bring(desk, out="none", skip_unmatched=True)
    write_coco(desk / "labels.json", ["color/0.png", "again/0.png"])
    with pytest.raises(ValueError, match=r"'color/0.png' and 'again/0.png' are both of the frame desk_0"):
        bring(desk, out="twice")
    # Annotations of frames that are not taken are no mistake.
    write_coco(desk / "labels.json", [f"{10 * index}.png" for index in range(5)])
    report = bring(desk, out="some", every=2, limit=2, val=0)
    assert [frame.frame_id for frame in frames_of(desk, "train", "some")] == ["desk_0", "desk_20"]
    assert not report["unmatched"] and not report["unannotated"]


@pytest.mark.parametrize(
    ("write", "names"),
    [(write_tum, ["rgb/100.000000.png", "100.500000.png"]), (write_frame_folders, ["0", "5/colour"])],
)
def test_frames_of_other_layouts_are_found_by_the_names_of_their_images(write, names, tmp_path):
    write(tmp_path / "place", make_frames(2))
    write_coco(tmp_path / "labels.json", names)
    report = bring(tmp_path, source="place", val=0)
    assert report["splits"]["train"]["notes"] == {"objects of drill": 2}


def test_a_name_that_fits_several_frames_is_none(tmp_path):
    write_frame_folders(tmp_path / "place", make_frames(2))
    write_coco(tmp_path / "labels.json", ["colour.png"])
    with pytest.raises(ValueError, match="1 of 1 annotated images are of no frame: colour.png"):
        bring(tmp_path, source="place")


def write_label_images(folder, frames):
    for index, frame in enumerate(frames):
        save_image(folder / "instance" / f"{10 * index}.png", (frame.instance + 1).astype(np.uint16))
        numbers = np.select([frame.semantic == CHAIR, frame.semantic == TABLE, frame.semantic == BED], [1, 2, 4], 0)
        save_image(folder / "semantic" / f"{10 * index}.png", numbers.astype(np.uint8))


def test_label_images(desk):
    frames = make_frames(5)
    write_label_images(desk, frames)
    (desk / "names.txt").write_text("stool\nbench\nbin\nsofa\n")
    labels = {key: desk / name for key, name in (("instances", "instance"), ("semantics", "semantic"))}
    report = bring(desk, annotations=None, labels={**labels, "classes": desk / "names.txt"}, val=0)
    assert report["classes"] == ["wall", "floor", "stool", "bench", "bin", "sofa"]
    assert report["splits"]["train"]["notes"] == {f"objects of {name}": 5 for name in ("stool", "bench", "sofa")}
    frame, source = frames_of(desk, "train")[2], frames[2]
    np.testing.assert_array_equal(frame.instance, source.instance)
    np.testing.assert_array_equal(frame.semantic == 5, source.semantic == BED)
    # The same by numbers, and an object with two classes has that of most of its pixels.
    (desk / "names.json").write_text(json.dumps({"1": "stool", "2": "bench", "4": "sofa"}))
    chair = frames[0].semantic == CHAIR
    values = np.select([chair, frames[0].semantic == TABLE], [1, 2], 0).astype(np.uint8)
    values[np.argwhere(chair)[0][0], chair.any(axis=0).argmax()] = 2
    save_image(desk / "semantic" / "0.png", values)
    report = bring(desk, out="numbers", annotations=None, labels={**labels, "classes": desk / "names.json"}, val=0)
    assert report["splits"]["train"]["notes"]["objects without a class, left out of training"] == 1
    assert read_classes(desk / "numbers") == ("wall", "floor", "stool", "bench", "sofa")
    frame = frames_of(desk, "train", "numbers")[0]
    assert (frame.semantic[chair] == 2).all()
    # Without classes.
    bring(desk, out="without", annotations=None, labels={"instances": desk / "instance"}, val=0)
    frame = frames_of(desk, "train", "without")[1]
    assert frame.semantic is None and (frame.instance == frames[1].instance).all()


def test_labels_that_fail_are_told_after_the_others_are_written(desk):
    write_label_images(desk, make_frames(5))
    (desk / "names.json").write_text(json.dumps({"1": "stool", "2": "bench"}))
    save_image(desk / "instance" / "10.png", np.zeros((8, 16), dtype=np.uint16))
    (desk / "semantic" / "20.png").write_bytes(b"nothing")
    labels = LabelOptions(instances=desk / "instance", semantics=desk / "semantic", classes=desk / "names.json")
    with pytest.raises(ValueError, match="split 'train' has no frame"):
        import_recording(desk / "desk", desk / "out", labels=labels, val=0, progress=False)
    failed = json.loads((desk / "out" / "report.json").read_text())["splits"]["train"]["failed"]
    assert "10.png: is of an image of 16x8" in failed["desk_10"] and "20.png: is no readable" in failed["desk_20"]
    assert all(f"{name}.png: has the number 4, which is no class" in failed[f"desk_{name}"] for name in (0, 30, 40))
    # Other labels are another data set.
    write_label_images(desk, make_frames(5))
    (desk / "names.json").write_text(json.dumps({"1": "stool", "2": "bench", "4": "bed"}))
    with pytest.raises(ValueError, match="begun with another labels_sha256"):
        import_recording(desk / "desk", desk / "out", labels=labels, val=0, progress=False)


def test_the_labels_of_the_recording_itself(tmp_path):
    frames = make_frames(2)
    write_frame_folders(tmp_path / "place", frames)
    bring(tmp_path, source="place", annotations=None, val=0)
    np.testing.assert_array_equal(frames_of(tmp_path, "train")[1].instance, frames[1].instance)
    # A data set of other classes keeps them.
    write_coco(tmp_path / "labels.json", ["0", "5"])
    bring(tmp_path, source="place", out="own", val=0)
    bring(tmp_path, source="own", out="copy", annotations=None, split="train", val=0)
    assert read_classes(tmp_path / "copy") == ("wall", "floor", *NAMES)
    assert (frames_of(tmp_path, "train", "copy")[0].semantic == 3).sum() == 80


def test_frames_that_are_damaged_are_left_out_and_told(desk):
    (desk / "desk" / "color" / "10.png").write_bytes(b"nothing")
    save_image(desk / "desk" / "depth" / "20.png", np.zeros((HEIGHT, WIDTH), dtype=np.uint16))
    report = bring(desk, val=0)
    skipped = {item["frame_id"]: item for item in report["splits"]["train"]["skipped"]}
    assert {name: item["reason"] for name, item in skipped.items()} == {
        "desk_10": "unreadable",
        "desk_20": "malformed",
    }
    assert "color/10.png" in skipped["desk_10"]["detail"] and len(frames_of(desk, "train")) == 3


def test_it_goes_on_with_the_same_and_refuses_another(desk):
    bring(desk, frames_per_shard=2)
    shards = {path: path.stat().st_mtime_ns for path in (desk / "out" / "data").iterdir()}
    lost = desk / "out" / "data" / "train-00001-of-00002.parquet"
    lost.unlink()
    report = bring(desk, frames_per_shard=2)
    assert report["splits"]["train"]["frames"] == 4 and len(frames_of(desk, "train")) == 4
    assert {path for path, time in shards.items() if path.stat().st_mtime_ns != time} == {lost}
    with pytest.raises(ValueError, match="begun with another jpeg_quality"):
        bring(desk, frames_per_shard=2, jpeg_quality=50)
    write_coco(desk / "labels.json", [f"{10 * index}.png" for index in range(5)], label=1)
    with pytest.raises(ValueError, match="begun with another labels_sha256"):
        bring(desk, frames_per_shard=2)
    (desk / "full" / "data").mkdir(parents=True)
    (desk / "full" / "data" / "mine.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        bring(desk, out="full")
    assert not (desk / "full" / "classes.json").exists()


def test_rows_can_be_made_elsewhere(desk):
    """A worker process gets what is needed to open the recording, and not the open recording."""
    labels = LabelOptions(desk / "labels.json")
    source = RecordingRows(desk / "desk", {}, labels, {"desk_10": "color/10.png"}, {"mug": 2, "drill": 3}, 95)
    assert len(source.recording) == 5 and source.annotations.names
    note, row = pickle.loads(pickle.dumps(source)).rows("desk_10")
    assert note == "objects of drill" and (frame_from_row(row).semantic == 3).sum() == 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 1.5}, "val is 1.5"),
        ({"unannotated": "drop"}, "unannotated is 'drop'"),
        ({"jpeg_quality": 101}, "jpeg_quality is 101"),
        ({"labels": {"instances": "x"}}, "exclude each other"),
        ({"annotations": None, "labels": {"semantics": "x"}}, "semantics needs instances"),
        (
            {"annotations": None, "labels": {"instances": "x", "semantics": "y"}},
            "semantics needs instances, and class",
        ),
        ({"annotations": None, "labels": {"classes": "names.txt"}}, "expected one of these too"),
        ({"depth_scale": -1}, "depth_scale is -1"),
    ],
)
def test_malformed_arguments_are_refused(desk, options, message):
    with pytest.raises(ValueError, match=message):
        bring(desk, **options)
    assert not (desk / "out").exists()


def test_the_two_folders_of_label_images_have_the_same_names(desk):
    write_label_images(desk, make_frames(5))
    (desk / "semantic" / "40.png").rename(desk / "semantic" / "50.png")
    (desk / "names.txt").write_text("stool\n")
    labels = LabelOptions(instances=desk / "instance", semantics=desk / "semantic", classes=desk / "names.txt")
    with pytest.raises(DataFileError, match="do not both have 40, 50"):
        import_recording(desk / "desk", desk / "out", labels=labels)
