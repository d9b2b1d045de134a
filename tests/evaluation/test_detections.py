"""AP over any multiset of frames against the ordinary metric fed with those frames."""

import numpy as np
import pytest

from bifusion_hf.evaluation.detections import DetectionRecorder, load_detections, save_detections
from bifusion_hf.evaluation.evaluator import (
    EvaluationProtocol,
    FrameEvaluator,
    FramePrediction,
    group_part,
)


CLASSES = ("a", "b", "c", "d")
PROTOCOL = EvaluationProtocol(CLASSES, None, min_points=8, groups={"first": ("a", "b"), "last": ("d",)})


def random_frame(rng, number):
    """Arguments of `FrameEvaluator.update`: instances in runs of points, predictions that are somewhat off."""
    points = 240
    bounds = np.sort(rng.choice(np.arange(4, points), rng.integers(2, 7), replace=False))
    ids = np.full(points, -1)
    for index, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        ids[start : end - (end - start) // 6] = index
    labels = rng.choice([0, 0, 1, 3], len(bounds) - 1)
    masks = [np.zeros(points, bool)]
    for index in rng.integers(0, len(labels), 12):
        masks.append((ids == index) ^ (rng.random(points) < rng.choice([0.0, 0.02, 0.1])))
    masks = np.array(masks)
    # Scores with ties, within and between frames, in descending order as networks give them.
    scores = np.sort(rng.integers(0, 6, len(masks)) / 8)[::-1].astype(np.float32)
    found = rng.choice([0, 0, 1, 2, 3], len(masks))
    return FramePrediction(f"frame {number}", np.arange(points), masks, scores, found), ids, labels, None


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(4)
    return [random_frame(rng, number) for number in range(12)]


@pytest.fixture(scope="module")
def parts(frames):
    recorder = DetectionRecorder()
    for frame in frames:
        evaluator = FrameEvaluator(PROTOCOL)
        evaluator.update(*frame)
        recorder.add(frame[0], evaluator)
    return recorder.detections()


def test_every_draw_is_what_the_ordinary_evaluator_says_of_its_frames(frames, parts):
    weights = np.random.default_rng(1).multinomial(len(frames), np.full(len(frames), 1 / len(frames)), 25)
    # A draw that leaves most frames out, so that classes are missing, and one that has them all once.
    weights = np.vstack([weights, np.eye(len(frames), dtype=int)[:2], np.ones((1, len(frames)), int)])
    for threshold, key in ((0.5, "ap50%"), (0.25, "ap25%")):
        found = {part: value.average_precision(weights, threshold) for part, value in parts.items()}
        for draw, row in enumerate(weights):
            evaluator = FrameEvaluator(PROTOCOL)
            for frame, times in zip(frames, row, strict=True):
                for _ in range(times):
                    evaluator.update(*frame)
            expected = evaluator.compute()
            classes = [expected["class_aware"]["classes"][name][key] for name in CLASSES]
            np.testing.assert_allclose(found["class_aware"][draw], classes, atol=1e-12)
            np.testing.assert_allclose(
                found["class_agnostic"][draw, 0], expected["class_agnostic"][f"all_ap_{key[2:]}"], atol=1e-12
            )
            for group in PROTOCOL.groups:
                value = expected["groups"][group]["class_agnostic"][key]
                np.testing.assert_allclose(found[group_part(group)][draw, 0], value, atol=1e-12)
    # "c" has no instance anywhere.
    assert np.isnan(found["class_aware"][:, 2]).all()


def test_one_frame_is_enough(frames):
    recorder, evaluator = DetectionRecorder(), FrameEvaluator(PROTOCOL)
    evaluator.update(*frames[0])
    recorder.add(frames[0][0], evaluator)
    found = recorder.detections()["class_aware"]
    assert found.frame_ids.tolist() == ["frame 0"] and found.class_names.tolist() == list(CLASSES)
    assert found.thresholds.tolist() == evaluator.metrics["class_aware"].thresholds.tolist()


def test_a_threshold_that_was_not_measured_is_refused(parts):
    with pytest.raises(ValueError, match="threshold is 0.3; expected one of"):
        parts["class_aware"].average_precision(np.ones((1, 12), int), 0.3)


def test_detections_name_their_frame(parts):
    value = parts["class_agnostic"]
    assert value.frame_ids.tolist() == [f"frame {number}" for number in range(12)]
    assert value.frames.dtype == np.int32 and len(value.frames) == len(value.scores)
    assert (np.diff(value.frames) >= 0).all() and set(value.frames.tolist()) == set(range(12))


def test_detections_come_back_from_their_file(tmp_path, parts):
    save_detections(tmp_path / "new" / "detections.npz", parts)
    found = load_detections(tmp_path / "new" / "detections.npz")
    assert found.keys() == parts.keys()
    for part, value in parts.items():
        for name, array in vars(value).items():
            np.testing.assert_array_equal(getattr(found[part], name), array)
            assert getattr(found[part], name).dtype == array.dtype, name
    with np.load(tmp_path / "new" / "detections.npz") as stored:
        small = {
            name: stored[f"class_aware/{name}"].dtype for name in ("scores", "missed", "num_instances", "classes")
        }
    assert list(small.values()) == [np.float32, np.uint16, np.uint16, np.int16]
    (tmp_path / "other.npz").write_bytes(b"nothing")
    for name in ("other.npz", "missing.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a file of detections"):
            load_detections(tmp_path / name)
