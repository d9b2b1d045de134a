import json

import numpy as np
import pytest
import torch
from frame_factory import POSE, make_frame
from PIL import Image

from bifusion_hf.data import gravity as package_gravity
from bifusion_hf.data.gravity import UpEstimate
from scripts.experiments.real_frames import boxes, card, gravity
from scripts.experiments.real_frames.__main__ import main
from scripts.experiments.real_frames.folder import read_real_frames
from scripts.experiments.real_frames.gravity import up_error
from scripts.experiments.real_frames.measurement import NO_POSE, TRUE_UP, best_ious, ceiling_ious, measure


def write_frame(folder, seed, *, labels=True, gravity=True):
    """A synthetic frame in the layout of the real ones."""
    frame = make_frame(60, 80, seed=seed)
    folder.mkdir(parents=True)
    Image.fromarray(frame.image).save(folder / "colour.png")
    Image.fromarray(np.rint(frame.depth * 5000).astype(np.uint16)).save(folder / "depth.png")
    focal = {"fx": frame.intrinsics[0, 0], "fy": frame.intrinsics[1, 1]}
    centre = {"cx": frame.intrinsics[0, 2], "cy": frame.intrinsics[1, 2]}
    settings = {**focal, **centre, "width": 80, "height": 60, "depth_scale": 5000}
    (folder / "intrinsics.json").write_text(json.dumps(settings))
    if labels:
        # The floor carries id 40 in the synthetic frame; here it is void, as in the real ones.
        ids = np.where(frame.instance == 40, -1, frame.instance // 7)
        Image.fromarray((ids + 1).astype(np.uint16)).save(folder / "instance.png")
        (folder / "instance_names.json").write_text('["chair", "table", "bed"]')
    if gravity:
        np.savetxt(folder / "pose_gravity.txt", POSE)
        np.savetxt(folder / "pose.txt", POSE)
    return frame


@pytest.fixture
def real_folder(tmp_path):
    folder = tmp_path / "real"
    write_frame(folder / "open3d_tum" / "a", 0)
    write_frame(folder / "mine" / "b", 1, gravity=False)
    write_frame(folder / "mine" / "c", 2, labels=False)
    (folder / "groups.json").write_text('{"drawers": ["mine"]}')
    return folder


def test_the_frames_of_a_folder_are_read_with_labels_group_and_up(real_folder):
    frames = list(read_real_frames(real_folder))
    assert [frame.name for frame in frames] == ["mine/b", "mine/c", "open3d_tum/a"]
    assert [frame.group for frame in frames] == ["drawers", "drawers", "rooms"]
    expected = make_frame(60, 80, seed=0)
    read = frames[2]
    np.testing.assert_array_equal(read.frame.image, expected.image)
    np.testing.assert_allclose(read.frame.depth, expected.depth, atol=1e-4)
    np.testing.assert_allclose(read.frame.intrinsics, expected.intrinsics)
    assert np.unique(read.frame.instance).tolist() == [-1, 0, 1, 2]
    assert read.names == ("chair", "table", "bed")
    # The true up is kept beside the frame: without it the frame has no pose.
    assert read.frame.camera_to_world is None
    np.testing.assert_allclose(read.gravity, POSE)
    assert frames[0].gravity is None
    # Nobody knows where the z axis of this source's own poses points.
    assert read.pose is None
    assert frames[1].frame.instance is None
    assert [frame.name for frame in read_real_frames(real_folder, labelled=True)] == ["mine/b", "open3d_tum/a"]


def test_a_labelled_frame_without_a_group_and_an_empty_folder_are_refused(real_folder, tmp_path):
    (real_folder / "groups.json").unlink()
    with pytest.raises(ValueError, match=r"mine/b belongs to no group.*groups.json"):
        list(read_real_frames(real_folder, labelled=True))
    with pytest.raises(ValueError, match="has no frames"):
        list(read_real_frames(tmp_path / "nothing"))


def test_intrinsics_of_another_size_are_refused(real_folder):
    path = real_folder / "mine" / "b" / "intrinsics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "width": 640}))
    with pytest.raises(ValueError, match=r"640x60; the depth image is 80x60"):
        list(read_real_frames(real_folder))


def test_best_iou_counts_the_void_points_of_a_mask():
    instance = np.array([0, 0, 0, 0, 1, 1, -1, -1])
    masks = np.zeros((2, 8), bool)
    masks[0, [0, 1, 2, 6, 7]] = True  # 3 of 4 points of object 0, and two void: 3 / 6
    masks[1, [3, 4]] = True
    np.testing.assert_allclose(best_ious(masks, instance, 2), [3 / 6, 1 / 3])
    np.testing.assert_array_equal(best_ious(masks[:0], instance, 2), [0, 0])


def test_the_ceiling_gives_each_superpoint_to_its_majority():
    instance = np.array([0, 0, 0, 1, 1, 1, -1, -1, -1])
    superpoints = np.array([0, 0, 1, 1, 1, 1, 1, 2, 2])
    # Superpoint 1 is object 1's, with one point of object 0 and one void.
    np.testing.assert_allclose(ceiling_ious(superpoints, instance, 2), [2 / 3, 3 / 5])


class TruthProcessor:
    """Its instances are the truth of the frame's points, none for a frame named in `blind`."""

    num_points, min_instance_points, part_gap = 4000, 20.0, 0.05

    def __init__(self, blind):
        self.blind, self.estimate_up, self.log = blind, True, []

    def prepare_frame(self, frame):
        pixels = np.flatnonzero(frame.depth)
        instance = frame.instance.reshape(-1)[pixels]
        up = "pose" if frame.camera_to_world is not None else ("estimated" if self.estimate_up else "camera")
        self.log.append((frame.frame_id, up))
        return {
            "frame_id": frame.frame_id,
            "pixel_indices": pixels,
            "instance": instance,
            "class_labels": np.zeros(instance.max() + 1, np.int64),
            # Two superpoints an object, one for all void.
            "superpoint_ids": np.where(instance < 0, 0, 2 * instance + 1 + pixels % 2),
            "up": up,
        }

    def collate(self, samples):
        # Nothing for the network: what it "finds" is the truth.
        return {name: samples[0][name] for name in ("frame_id", "instance", "up")}

    def post_process_instance_segmentation(self, outputs, batch, threshold):
        found = 0 if batch["frame_id"] in self.blind else 3
        masks = torch.as_tensor(batch["instance"]) == torch.arange(found)[:, None]
        scores = torch.linspace(0.9, 0.6, 3)[:found]
        return [{"point_masks": masks, "scores": scores, "labels": torch.zeros(found).long(), "up": batch["up"]}]


def test_the_result_is_that_of_the_frames_and_the_interval_that_of_their_draws(real_folder):
    (real_folder / "groups.json").write_text('{"rooms": ["mine"]}')
    frames = list(read_real_frames(real_folder, labelled=True))
    processor = TruthProcessor(blind=["mine/b"])
    result = measure(lambda **_: None, processor, frames)
    values = result["groups"]["rooms"]
    assert (values["frames"], values["objects"]) == (2, 6)
    # Only the frame that has one is given its true up.
    assert values["up"] == {
        "no pose": {"estimated": 2},
        "camera's up": {"camera": 2},
        "true up": {"pose": 1, "estimated": 1},
    }
    assert values[NO_POSE]["ap50"]["value"] == pytest.approx(0.5)
    assert (values[NO_POSE]["ap50"]["low"], values[NO_POSE]["ap50"]["high"]) == pytest.approx((0, 1))
    assert values[NO_POSE]["mean_iou"]["value"] == pytest.approx(0.5)
    assert values[NO_POSE]["ceiling_iou"]["value"] == values[NO_POSE]["ceiling_found"]["value"] == 1
    assert result["frames"]["open3d_tum/a"][NO_POSE]["ap50"] == 1
    assert result["frames"]["mine/b"][TRUE_UP]["ap50"] == 0


def test_the_error_of_up_is_that_of_what_the_network_is_given(monkeypatch):
    frame = make_frame(60, 80, with_pose=False)
    up = POSE[2, :3]
    tilted = np.array([up[0], np.cos(0.2) * up[1] - np.sin(0.2) * up[2], np.sin(0.2) * up[1] + np.cos(0.2) * up[2]])
    for confidence, expected in ((1.0, np.degrees(0.2)), (0.1, 0.0)):
        estimate = UpEstimate(tilted, confidence)
        for module in (gravity, package_gravity):
            monkeypatch.setattr(module, "estimate_up", lambda depth, intrinsics, estimate=estimate: estimate)
        # A pose of the frame's own is not looked at; the camera of the synthetic frame is level.
        found = up_error(make_frame(60, 80), POSE)
        assert found.degrees == pytest.approx(expected, abs=1e-3) and found.camera_degrees == pytest.approx(
            0, abs=1e-3
        )
        assert found.estimated == (confidence == 1.0)
    assert up_error(frame, np.diag([1.0, -1, -1, 1])).camera_degrees == pytest.approx(90)


def test_measure_report_and_pictures_from_the_command_line(real_folder, tmp_path, capsys):
    words = ["--frames", str(real_folder), "--checkpoint", "sample", "--name", "first"]
    main(["measure", *words, "--results", str(tmp_path / "results")])
    path = tmp_path / "results" / "real_frames_first.json"
    later = {**json.loads(path.read_text()), "measured": "2999-01-01T00:00:00Z"}
    (path.parent / "real_frames_a_second.json").write_text(json.dumps(later))
    member = {**later, "rendered": {"data": "set", "split": "val", "ap": 0.125, "ap50": 0.25}}
    (path.parent / "real_frames_ablation_part.json").write_text(json.dumps(member))
    found = card.read_results(tmp_path / "results")
    assert list(found) == ["first", "a_second", "ablation_part"]
    assert 0 <= found["first"]["groups"]["rooms"][NO_POSE]["ap50"]["value"] <= 1
    assert found["first"]["protocol"]["min_points"] == 40
    assert "| rooms | first | 1 |" in capsys.readouterr().out
    output = tmp_path / "card" / "README.md"
    output.parent.mkdir()
    (output.parent / "notes.md").write_text("What the pictures show.\n")
    main(["pictures", *words, "--output", str(output.parent)])
    main(["gravity", *words[:2], "--results", str(tmp_path / "results")])
    main(["boxes", *words[:4], "--results", str(tmp_path / "results")])
    measured = json.loads((tmp_path / "results" / "real_frames_boxes.json").read_text())
    # Of these frames the network may find nothing.
    assert measured["masks"]["apart"]["with_strays"] in (0, None) and measured["labelled_objects"] > 0
    assert all(value == value for value in boxes.side_errors(np.ones((1, 3)), np.ones((1, 3))).values())
    assert all(value != value for value in boxes.side_errors(np.zeros((0, 3)), np.zeros((0, 3))).values())
    main(["report", "--results", str(tmp_path / "results"), "--output", str(output)])
    text = output.read_text()
    # A member of a series has a table of its own and stands in no other.
    ablation, rest = text.partition("## Ablation")[2].partition("\n## ")[::2]
    assert "| `part` |" in ablation and "12.5 | 25.0 |" in ablation and "`ablation_part`" not in rest
    assert "## Boxes" in text and "| apart | 0.25 % left out |" in text
    assert "## rooms" in text and "## drawers" in text and "What the pictures show." in text
    assert "![first-unlabelled](first-unlabelled.jpg)" in text
    assert "| real, pose_gravity.txt | 2 |" in text and "| rendered | 32 |" in text
    assert "| open3d_tum | 1 | isl-org/Open3D" in text
    # A labelled frame beside its truth, a frame without labels alone.
    widths = {group: Image.open(output.parent / f"first-{group}.jpg").width for group in ("rooms", "unlabelled")}
    assert widths == {"rooms": 800, "unlabelled": 400}


def test_extents_of_found_objects_and_stray_parts():
    """Plates of 121 points; the segment of the first has some of the second, 30 cm on, and of the third, 5 m on."""
    side = np.arange(0, 0.21, 0.02)
    plate = np.stack(np.meshgrid(side, side, [1.0]), axis=-1).reshape(-1, 3)
    points = np.concatenate([plate, plate + [0.5, 0, 0], plate + [0, 0, 5]])
    instance = np.repeat([0, 1, -1], len(plate))
    found = instance == 0
    found[[len(plate), len(plate) + 11, len(plate) + 22, -1, -2]] = True
    part = boxes.largest_part(found, points, 0.05)
    np.testing.assert_array_equal(part, instance == 0)
    first, second = boxes.object_extents(np.stack([found]), instance, points, 100, 0.05)
    assert second is None
    np.testing.assert_allclose(first["all points"], [0.5, 0.2, 5.0], atol=1e-6)
    for truth in ("true all points", "true largest part"):
        np.testing.assert_allclose(first[truth], [0.2, 0.2, 0], atol=1e-6)
    # Objects of fewer points are none.
    assert boxes.object_extents(np.stack([found]), instance, points, 122, 0.05) == []
    errors = boxes.side_errors(np.array([[0.5, 0.2, 5.0]]), np.array([[0.2, 0.4, 0.1]]))
    assert errors == pytest.approx({"largest_side": 0.2, "all_sides": 0.3, "relative": 0.5})


def test_the_card_without_results_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"has no real_frames_NAME.json"):
        main(["report", "--results", str(tmp_path), "--output", str(tmp_path / "README.md")])
