"""What a recording of the Rerun viewer is given, by a stand-in that takes it down."""

from types import SimpleNamespace

import numpy as np
import pytest
from frame_factory import POSE, make_frame

from bifusion_hf.scenes.objects import SceneObject
from bifusion_hf.scenes.rerun_file import write_rerun
from bifusion_hf.visualization.colors import instance_color


class Frames(dict):
    """Frames by their place, as a recording has them."""

    ids = ("a", "b", "c")


class Shown:
    """Something that is shown: what it was made of."""

    def __init__(self, *values, **options):
        self.values, self.options = values, options

    def compress(self, jpeg_quality):
        self.options["jpeg_quality"] = jpeg_quality
        return self


class Stream:
    def __init__(self, name):
        self.logged, self.frame, self.is_open = [], "no frame yet", True

    def save(self, path):
        path.touch()

    def set_time(self, name, sequence):
        self.frame = sequence

    def log(self, place, shown, static=False):
        self.logged.append((None if static else self.frame, place, shown))

    def flush(self):
        pass

    def disconnect(self):
        self.is_open = False


@pytest.fixture
def viewer(monkeypatch):
    """The stand-in; `streams` are those that were begun."""
    module = SimpleNamespace(streams=[], ViewCoordinates=SimpleNamespace(RIGHT_HAND_Z_UP="z up"))
    for name in ("Points3D", "Boxes3D", "AnnotationContext", "Transform3D", "Pinhole", "Image", "SegmentationImage"):
        setattr(module, name, type(name, (Shown,), {}))

    def begin(name):
        module.streams.append(Stream(name))
        return module.streams[-1]

    module.RecordingStream = begin
    monkeypatch.setattr("bifusion_hf.scenes.rerun_file.require_package", lambda name: {"rerun": module}[name])
    return module


@pytest.fixture
def session():
    """Frames "c" and "a" of a recording were taken; the cloud has points of the objects 2 and 3, and of none."""
    poses = np.stack([POSE, np.eye(4)])
    # The second frame has an object beyond what two bytes hold.
    maps = [np.full((24, 32), -1), np.repeat([[2], [65535]], 12, axis=0).repeat(32, axis=1)]
    colors = np.full((3, 3), 100, np.uint8)
    return SimpleNamespace(
        cloud=lambda: (np.eye(3, dtype=np.float32), colors, np.array([2, 3, -1])),
        voxel_size=0.06, frame_ids=["c", "a"], poses=poses, keep_frames=True, frame_segmentation=maps.__getitem__,
    )  # fmt: skip


def write(viewer, session, path, objects=True):
    """What is logged, by frame and place."""
    points = np.zeros((1, 3), np.float32)
    box = np.array([1.0, 2, 3, 2, 4, 6])
    shown = [SceneObject(2, 0, "object", 0.5, box, 2, points, points.astype(np.uint8), "chair")] if objects else []
    write_rerun(path, session, shown, Frames({index: make_frame(24, 32, seed=index) for index in range(3)}))
    (stream,) = viewer.streams
    assert not stream.is_open
    return {(frame, place, type(what).__name__): what for frame, place, what in stream.logged}


def test_cloud_and_boxes_are_there_for_all_times(viewer, session, tmp_path):
    logged = write(viewer, session, tmp_path / "scene.rrd")
    assert (tmp_path / "scene.rrd").exists() and logged[None, "world", "str"] == "z up"
    cloud = logged[None, "world/points", "Points3D"]
    np.testing.assert_array_equal(cloud.values[0], np.eye(3))
    # Points of a voxel's size would hide each other; object 3 is not shown.
    assert cloud.options["radii"] == pytest.approx(0.02)
    first, second, third = cloud.options["colors"].tolist()
    assert second == third == [100] * 3 != first
    boxes = logged[None, "world/objects", "Boxes3D"].options
    assert boxes["mins"].tolist() == [[1, 2, 3]] and boxes["sizes"].tolist() == [[1, 2, 3]]
    assert boxes["labels"] == ["chair 2 0.50"] and boxes["colors"].tolist() == [instance_color(2).tolist()]
    (named,) = logged[None, "world/camera", "AnnotationContext"].values[0]
    assert named == (3, "chair 2", tuple(instance_color(2).tolist())), "0 is no object"


def test_each_frame_has_its_camera_its_picture_and_its_map(viewer, session, tmp_path):
    logged = write(viewer, session, tmp_path / "scene.rrd")
    for number, (index, pose) in enumerate(((2, POSE), (0, np.eye(4)))):
        frame = make_frame(24, 32, seed=index)
        place = logged[number, "world/camera", "Transform3D"].options
        np.testing.assert_array_equal(place["translation"], pose[:3, 3])
        np.testing.assert_array_equal(place["mat3x3"], pose[:3, :3])
        camera = logged[number, "world/camera", "Pinhole"].options
        np.testing.assert_array_equal(camera["image_from_camera"], frame.intrinsics)
        assert camera["resolution"] == [32, 24]
        picture = logged[number, "world/camera/image", "Image"]
        np.testing.assert_array_equal(picture.values[0], frame.image)
        assert picture.options == {"jpeg_quality": 80}
        ids = logged[number, "world/camera/objects", "SegmentationImage"].values[0]
        assert ids.dtype == np.uint16 and ids.shape == (24, 32)
        assert (ids[:12] == (0, 3)[number]).all() and (ids[12:] == (0, 65535)[number]).all()


def test_without_objects_and_without_maps(viewer, session, tmp_path):
    session.keep_frames = False
    logged = write(viewer, session, tmp_path / "scene.rrd", objects=False)
    assert {place for _, place, _ in logged} == {"world", "world/points", "world/camera", "world/camera/image"}
