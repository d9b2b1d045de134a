"""AP over resampled frames against the ordinary metric fed with those frames."""

import numpy as np
import pytest

from bifusion_hf.evaluation.detections import DetectionRecorder, load_detections, save_detections
from bifusion_hf.evaluation.evaluator import (
    EvaluationProtocol,
    FrameEvaluator,
    FramePrediction,
    group_part,
)
from scripts.experiments.bootstrap import group_means, interval, resampled_weights


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
    weights = resampled_weights([str(index) for index in range(len(frames))], 25, seed=1)
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
    means = group_means(found["class_aware"], np.array(CLASSES), {"all": CLASSES, **PROTOCOL.groups})
    assert means["all"][-1] == pytest.approx(expected["class_aware"]["all_ap_25%"])
    for group in PROTOCOL.groups:
        assert means[group][-1] == pytest.approx(expected["groups"][group]["class_aware"]["ap25%"])
    # "c" has no instance anywhere; it is no class of the mean.
    assert np.isnan(found["class_aware"][:, 2]).all() and not np.isnan(means["all"]).any()


def test_a_threshold_that_was_not_measured_is_refused(parts):
    with pytest.raises(ValueError, match="threshold is 0.3; expected one of"):
        parts["class_aware"].average_precision(np.ones((1, 12), int), 0.3)


def test_detections_come_back_from_their_file(tmp_path, parts):
    save_detections(tmp_path / "new" / "detections.npz", parts)
    found = load_detections(tmp_path / "new" / "detections.npz")
    assert found.keys() == parts.keys()
    for part, value in parts.items():
        for name, array in vars(value).items():
            np.testing.assert_array_equal(getattr(found[part], name), array)
    (tmp_path / "other.npz").write_bytes(b"nothing")
    for name in ("other.npz", "missing.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a file of detections"):
            load_detections(tmp_path / name)


def test_draws_are_seeded_hold_as_many_units_and_keep_units_together():
    weights = resampled_weights(["x", "y", "x", "z"], 500, seed=3)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    # Each unit is drawn once on average; a third of the draws, (2/3)^3, leaves it out.
    assert weights.mean(axis=0) == pytest.approx([1, 1, 1, 1], abs=0.15)
    assert (weights[:, 1] == 0).mean() == pytest.approx(8 / 27, abs=0.07)
    np.testing.assert_array_equal(weights, resampled_weights(["x", "y", "x", "z"], 500, seed=3))
    assert (weights != resampled_weights(["x", "y", "x", "z"], 500, seed=4)).any()


def test_an_interval_is_of_percentiles_and_leaves_out_what_has_no_value():
    values = np.append(np.arange(1001) / 1000, [np.nan, np.nan])
    assert interval(values) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([np.nan]))).all()
