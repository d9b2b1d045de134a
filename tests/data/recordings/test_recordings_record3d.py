"""What the files of Record3D may lack, and what they may not say."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.data.recordings import open_recording, record3d
from bifusion_hf.io.files import DataFileError


lzfse = pytest.importorskip("lzfse")

# A camera of images of 64x48; a place, and no turn.
POSE = [0, 0, 0, 1, 1, 2, 3]
METADATA = {"w": 64, "h": 48, "K": [60, 0, 0, 0, 62, 0, 30, 20, 1], "poses": [POSE]}
# x right, y down, z forward of a camera that looks along -z of a world with y up, in one with z up.
LEVEL = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]


def picture(height, width):
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path, metadata=None, shape=(24, 32), image=(48, 64), **members):
    """An archive of a frame whose depth is 1.5 m; `members` by their endings replace its own, None = left out."""
    if not isinstance(metadata, bytes):
        metadata = json.dumps({**METADATA, **(metadata or {})}).encode()
    data = np.full(shape, 1.5, dtype="<f4").tobytes()
    content = {"metadata": metadata, "jpg": picture(*image), "depth": lzfse.compress(data), **members}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            if value is not None:
                archive.writestr(name if name == "metadata" else f"rgbd/0.{name}", value)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "take.r3d"


def test_without_a_first_pose_the_others_are_of_the_world(path):
    recording = open_recording(write(path, {"dh": 24, "dw": 32}))
    assert recording.ids == ["take_0"] and recording.images == ["rgbd/0"]
    frame = recording[0]
    np.testing.assert_allclose(frame.camera_to_world[:3, :3], LEVEL, atol=1e-12)
    np.testing.assert_allclose(frame.camera_to_world[:3, 3], [1, -3, 2])
    np.testing.assert_allclose(frame.intrinsics, [[30, 0, 14.75], [0, 31, 9.75], [0, 0, 1]])
    assert (frame.depth == 1.5).all() and frame.frame_id == "take_0"
    assert (open_recording(path, depth_scale=2)[0].depth == 0.75).all()
    # In a world with z up there is nothing to turn but the camera's own axes.
    pose = open_recording(path, up="z")[0].camera_to_world
    np.testing.assert_allclose(pose[:3], [[1, 0, 0, 1], [0, -1, 0, 2], [0, 0, -1, 3]], atol=1e-12)


@pytest.mark.parametrize(
    ("image", "depth"),
    [
        ((20, 15), (256, 192)),
        ((15, 20), (192, 256)),
        ((20, 15), (640, 480)),
        ((15, 20), (480, 640)),
        ((30, 20), (30, 20)),
    ],
)
def test_depth_of_unknown_size_has_that_of_the_picture_or_of_a_sensor(image, depth, path):
    assert open_recording(write(path, shape=depth, image=image))[0].depth.shape == depth
    # One side alone says nothing.
    assert open_recording(write(path, {"dw": 7}, depth, image))[0].depth.shape == depth


def test_beside_a_picture_as_wide_as_high_depth_lies(path):
    with pytest.raises(ValueError, match="take_0: image is 15x15 while depth is 256x192"):
        open_recording(write(path, shape=(192, 256), image=(15, 15)))[0]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"w": 0}, "metadata has w 0 and h 48; expected pixels"),
        ({"h": 2**16}, "metadata has w 64 and h 65536; expected pixels"),
        ({"w": "64"}, "metadata has w '64' and h 48; expected pixels"),
        ({"poses": {"0": POSE}}, r"metadata has poses {'0': .*; expected a list, one for each frame"),
        ({"initPose": POSE[:6]}, r"\(initPose\): has the pose \[0\.0, 0\.0.*expected qx qy qz qw tx ty tz"),
        ({"initPose": "none"}, r"\(initPose\): has the pose 'none'; expected qx qy qz qw tx ty tz"),
    ],
)
def test_malformed_metadata_is_refused_on_opening(metadata, message, path):
    with pytest.raises(DataFileError, match=rf"take\.r3d.*{message}"):
        open_recording(write(path, metadata))


@pytest.mark.parametrize(
    ("metadata", "members", "message"),
    [
        ({"K": [60, 0, 0, 0, 62, 0, 30, 20]}, {}, "metadata has 8 numbers as K; expected 9"),
        ({"K": "none"}, {}, r"take\.r3d \(K\)"),
        ({"poses": [[0, 0, 0, 0, 1, 2, 3]]}, {}, r"\(pose 0\): has the pose \[0\.0, 0\.0, 0\.0, 0\.0, 1\.0"),
        ({"dh": 24, "dw": 0}, {}, r"\(rgbd/0\.depth\): metadata has dh 24 and dw 0; expected pixels"),
        ({"dh": 23, "dw": 32}, {}, r"\(rgbd/0\.depth\): has 768 values; expected one of \[\(23, 32\)\]"),
        ({}, {"depth": lzfse.compress(bytes(4 * 768 + 1))}, r"\(rgbd/0\.depth\): has 0 values"),
        ({}, {"depth": b"none"}, r"\(rgbd/0\.depth\): cannot be decompressed"),
        ({}, {"depth": None}, r"take\.r3d: has no member rgbd/0\.depth"),
        ({}, {"jpg": b"none"}, r"\(rgbd/0\.jpg\): is no readable"),
    ],
)
def test_a_malformed_frame_is_refused_when_it_is_read(metadata, members, message, path):
    recording = open_recording(write(path, {"dh": 24, "dw": 32, **metadata}, **members))
    with pytest.raises(ValueError, match=message):
        recording[0]


def test_metadata_that_are_no_json_are_refused(path):
    for content in (b"{", b"\xff\xff", b"[" * 100_000):
        with pytest.raises(DataFileError, match=r"take\.r3d: metadata is not JSON"):
            open_recording(write(path, content))


def test_pictures_and_members_may_be_as_large_as_any_camera_makes_them(path, monkeypatch):
    content = json.dumps({**METADATA, "w": 2**16 - 1, "h": 1}).encode()
    monkeypatch.setattr(record3d, "MAX_MEMBER_BYTES", len(content))
    assert len(open_recording(write(path, content))) == 1
    with pytest.raises(DataFileError, match=rf"metadata unpacks to more than {len(content)} bytes"):
        open_recording(write(path, content + b" "))
    monkeypatch.undo()
    assert 4096 * 4096 * np.dtype(np.float32).itemsize == record3d.MAX_MEMBER_BYTES
