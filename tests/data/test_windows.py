"""Windows of frames: which frames, in which coordinates, with which ids and boxes, and one augmentation for all."""

import itertools

import numpy as np
import pytest
from augmentation_off import only
from walk_rows import VIEWS, walk_data

from bifusion_hf.data.alignment import alignment_error
from bifusion_hf.data.augmentation import AugmentationConfig, JointAugmentation
from bifusion_hf.data.frames import frame_from_row
from bifusion_hf.data.mixture import Mixture
from bifusion_hf.data.windows import Scenes, WindowCollator, WindowDataset
from bifusion_hf.processing_bifusion import BiFusionProcessor


STILL = only()


@pytest.fixture(scope="module")
def scenes():
    return Scenes(walk_data())


@pytest.fixture(scope="module")
def processor():
    return BiFusionProcessor(num_points=500, image_size=120)


def windows(scenes, processor, config=None, frames=3, **options):
    augmentation = None if config is None else JointAugmentation(config)
    return WindowDataset(scenes, processor, frames, augmentation=augmentation, **options)


def test_a_window_is_of_consecutive_frames_from_any_start_and_wraps(scenes, processor, monkeypatch):
    monkeypatch.setattr(WindowDataset, "_window", lambda self, rows, rng: [row["frame_id"] for row in rows])
    data = windows(scenes, processor)
    assert len(data) == 2
    order = [row["frame_id"] for row in scenes[1]]
    starts = set()
    for epoch in range(40):
        found = data[epoch, 1]["frames"]
        start = order.index(found[0])
        assert found == [order[(start + step) % VIEWS] for step in range(3)]
        starts.add(start)
    assert starts == set(range(VIEWS))
    # By the generator of (seed, epoch, scene).
    found = windows(scenes, processor, seed=5)[2, 1]["frames"]
    assert found[0] == order[np.random.default_rng([5, 2, 1]).integers(VIEWS)]
    assert windows(scenes, processor)[2, 1]["frames"] == windows(scenes, processor, seed=0)[2, 1]["frames"]


def test_all_frames_are_in_one_world_with_the_ids_and_boxes_of_the_scene(scenes, processor):
    samples = windows(scenes, processor, frames=VIEWS)[0, 0]["frames"]
    rows = {row["frame_id"]: row for row in scenes[0]}
    shared = set()
    for sample in samples:
        row = rows[sample["frame_id"]]
        frame = frame_from_row(row)
        np.testing.assert_allclose(
            sample["points"], frame.unproject().reshape(-1, 3)[sample["pixel_indices"]], atol=1e-5
        )
        assert not sample["point_offset"].any()
        labels = frame.instance.reshape(-1)[sample["pixel_indices"]]
        known = dict(zip(row["object_ids"], row["object_boxes"], strict=True))
        assert len(sample["instance_ids"]) == len(sample["class_labels"]) == len(sample["object_boxes"]) > 3
        for number, (name, box) in enumerate(zip(sample["instance_ids"], sample["object_boxes"], strict=True)):
            assert (labels[sample["instance"] == number] == name).all()
            np.testing.assert_allclose(box, known[name], atol=1e-5)
        shared.update(sample["instance_ids"].tolist())
        assert sample["instance_ids"].dtype == np.int64 and sample["object_boxes"].dtype == np.float32
        assert type(sample["query_seed"]) is int and sample["query_seed"] < 2**62
    assert max(sample["query_seed"] for sample in samples) > 2**60
    assert len(shared) < sum(len(sample["instance_ids"]) for sample in samples)


def same_place(first, second):
    """Pairs of points of two frames that were within a centimetre of each other before."""
    distance = np.linalg.norm(first[:, None] - second[None], axis=2)
    rows, columns = np.nonzero(distance < 0.01)
    assert len(rows) > 5
    return rows, columns


@pytest.mark.parametrize("elastic", [0.0, 1.0])
def test_one_augmentation_moves_the_whole_window(scenes, elastic):
    processor = BiFusionProcessor(num_points=4000, image_size=120)
    moved = AugmentationConfig(elastic_probability=elastic, image_flip_probability=1.0, tilt_probability=1.0)
    plain = windows(scenes, processor)[3, 0]["frames"]
    # The points are drawn before anything is moved, so they are the same ones.
    found = windows(scenes, processor, moved)[3, 0]["frames"]
    assert [s["frame_id"] for s in found] == [s["frame_id"] for s in plain]
    rows, columns = same_place(plain[0]["points"], plain[1]["points"])
    away = np.linalg.norm(found[0]["points"] - plain[0]["points"], axis=1)
    assert away.max() > 0.3
    apart = np.linalg.norm(found[0]["points"][rows] - found[1]["points"][columns], axis=1)
    assert apart.max() < 0.03
    if not elastic:
        # A rotation, a mirroring and one scale for all: a similarity that the boxes and cameras follow.
        before, after = (np.concatenate([s["points"] for s in part]).astype(np.float64) for part in (plain, found))
        linear, *_ = np.linalg.lstsq(before - before.mean(axis=0), after - after.mean(axis=0), rcond=None)
        scale = np.cbrt(abs(np.linalg.det(linear)))
        np.testing.assert_allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-4)
        mirrored = np.diag([-1.0, 1.0, 1.0])
        for old, new in zip(plain, found, strict=True):
            expected = linear.T / scale @ old["camera_rotation"] @ mirrored
            np.testing.assert_allclose(new["camera_rotation"], expected, atol=1e-4)
            for box, was in zip(new["object_boxes"], old["object_boxes"], strict=True):
                corners = np.array(list(itertools.product(*was.reshape(2, 3).T)))
                corners = (corners - before.mean(axis=0)) @ linear + after.mean(axis=0)
                np.testing.assert_allclose(box, [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-3)


def test_an_augmentation_that_moves_nothing_leaves_points_and_boxes_in_their_place(scenes, processor):
    plain, still = (windows(scenes, processor, config)[3, 0]["frames"] for config in (None, STILL))
    assert max(np.abs(sample["points"].mean(axis=0)).max() for sample in plain) > 0.1
    for sample, other in zip(plain, still, strict=True):
        for name in ("points", "object_boxes"):
            np.testing.assert_allclose(other[name], sample[name], atol=1e-5)


def test_boxes_hold_the_points_of_their_objects_after_the_augmentation(scenes, processor):
    config = AugmentationConfig(elastic_probability=0.0)
    held = 0
    for sample in windows(scenes, processor, config)[0, 1]["frames"]:
        for number, box in enumerate(sample["object_boxes"]):
            points = sample["points"][sample["instance"] == number]
            assert (points >= box[:3] - 1e-3).all() and (points <= box[3:] + 1e-3).all()
            held += len(points)
    assert held > 100


def test_the_images_of_a_window_are_changed_by_the_same_draws(scenes, processor):
    config = only(image_flip_probability=0.5, brightness=0.4)
    flips = set()
    for epoch in range(8):
        plain = windows(scenes, processor)[epoch, 0]["frames"]
        found = windows(scenes, processor, config)[epoch, 0]["frames"]
        flipped = [bool((a["point_pixels"] != b["point_pixels"]).any()) for a, b in zip(found, plain, strict=True)]
        assert len(set(flipped)) == 1
        flips.add(flipped[0])
        factors = [np.median(new["image"]) / np.median(old["image"]) for new, old in zip(found, plain, strict=True)]
        assert max(factors) - min(factors) < 0.02
    assert flips == {True, False}


def test_the_alignment_of_a_window_is_measured_before_its_colours_change(scenes, processor):
    plain = windows(scenes, processor)[0, 0]["frames"]
    found = windows(scenes, processor, only(image_flip_probability=1.0, brightness=0.4))[0, 0]["frames"]
    for old, new in zip(plain, found, strict=True):
        assert old["alignment_error"] == alignment_error(old)
        assert new["alignment_error"] == pytest.approx(old["alignment_error"], rel=1e-3)
        assert alignment_error(new) != pytest.approx(new["alignment_error"], rel=1e-2)
    batch = WindowCollator(processor)([{"frames": found}])
    assert batch["alignment_errors"].tolist() == pytest.approx([sample["alignment_error"] for sample in found])


def test_draws_follow_seed_epoch_and_scene_alone(scenes, processor):
    config = AugmentationConfig()
    first, again = (windows(scenes, processor, config) for _ in range(2))
    again[0, 0]
    for one, other in zip(first[2, 1]["frames"], again[2, 1]["frames"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, other[name])
    assert (first[3, 1]["frames"][0]["points"] != first[2, 1]["frames"][0]["points"]).any()
    other_seed = windows(scenes, processor, config, seed=1)[2, 1]["frames"]
    assert (other_seed[0]["points"] != first[2, 1]["frames"][0]["points"]).any()


def test_a_batch_holds_the_frames_of_one_time_together(scenes, processor):
    data = windows(scenes, processor, AugmentationConfig())
    samples = [data[0, 0], data[0, 1]]
    batch = WindowCollator(processor)(samples)
    assert batch["window_frames"] == 3 and batch["points"].shape == (6, 500, 3)
    order = [samples[scene]["frames"][step] for step in range(3) for scene in range(2)]
    assert batch["frame_ids"] == [sample["frame_id"] for sample in order]
    for row, sample in enumerate(order):
        np.testing.assert_array_equal(batch["points"][row], sample["points"])
        np.testing.assert_array_equal(batch["instance_ids"][row], sample["instance_ids"])
        np.testing.assert_array_equal(batch["object_boxes"][row], sample["object_boxes"])
        assert batch["mask_labels"][row].shape[0] == len(sample["instance_ids"])
    assert len(set(batch["query_seeds"].tolist())) == 6
    assert WindowCollator(processor)([None, samples[1]])["points"].shape[0] == 3
    assert WindowCollator(processor)([None]) is None


def test_rows_without_boxes_give_none_and_a_mixture_of_scenes_is_one_of_rows(scenes, processor):
    bare = Scenes(scenes[0].data.remove_columns(["object_boxes", "object_ids"]))
    data = windows(Mixture({"a": scenes, "b": bare}, {"a": 1.0, "b": 2.0}), processor)
    assert len(data) == 4 and len(data.mixture.epoch_keys(0, 0)) == 4
    assert "object_boxes" in WindowCollator(processor)([data[0, 0]])
    assert "object_boxes" not in WindowCollator(processor)([data[0, 3]])
    for name in ("object_boxes", "object_ids"):
        half = windows(Scenes(scenes[0].data.remove_columns([name])), processor, frames=1)[0, 0]
        assert "object_boxes" not in half["frames"][0] and len(half["frames"][0]["instance_ids"])
    with pytest.raises(ValueError, match="object_boxes is missing; expected in all frames or in none"):
        WindowCollator(processor)([data[0, 0], data[0, 3]])


def broken(change):
    def changed(row):
        return change(dict(row)) if row["frame_id"] == broken_name else row

    rows = list(walk_data())
    broken_name = rows[1]["frame_id"]
    return Scenes(Rows([changed(row) for row in rows]))


class Rows(list):
    column_names = ("frame_id", "scene_id")

    def select_columns(self, _names):
        return self


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "camera_to_world": None}, "camera_to_world is None; a window needs the pose"),
        (lambda row: {**row, "instance": None}, "no instance labels; a window needs ids"),
        (lambda row: {**row, "object_ids": row["object_ids"][1:]}, r"object_boxes has \d+ rows; expected \d+"),
        (
            lambda row: {**row, "object_ids": row["object_ids"][:1], "object_boxes": row["object_boxes"][:1]},
            r"object_ids has no \[.*\]; expected all ids",
        ),
        (lambda row: {**row, "depth": {"bytes": b"none", "path": None}}, "is no readable picture: of no known format"),
    ],
)
def test_a_broken_frame_is_named_with_its_scene_or_its_window_is_left_out(change, message, processor):
    scenes = broken(change)
    with pytest.raises(ValueError, match=rf"row 0 \(scene 'room 0'\) is broken: .*{message}"):
        windows(scenes, processor, frames=VIEWS)[0, 0]
    data = windows(scenes, processor, frames=VIEWS, skip_broken=True)
    assert data[0, 0] is None and data[0, 1] is not None


@pytest.mark.parametrize("part", ["pose_dropout", "recolor_probability"])
def test_what_would_take_a_window_apart_is_refused(part, scenes, processor):
    with pytest.raises(ValueError, match=f"{part} is 0.5; expected 0 for windows"):
        windows(scenes, processor, AugmentationConfig(**{part: 0.5}))
    with pytest.raises(ValueError, match="num_frames is 0; expected at least 1"):
        windows(scenes, processor, frames=0)
    assert windows(scenes, processor, frames=1).num_frames == 1
