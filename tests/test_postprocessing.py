import numpy as np
import pytest
import torch

from bifusion_hf.boxes import describe_points
from bifusion_hf.postprocessing import (
    describe_class,
    describe_instances,
    instance_map,
    instances_of_frame,
    mask_classes,
    matrix_nms,
    paint_map,
    pixel_masks,
    real_queries,
    select_instances,
    semantics_of_frame,
    superpoint_classes,
    unpad_frames,
)


@pytest.fixture(scope="module")
def nms_reference(reference):
    return np.load(reference / "matrix_nms.npz")


@pytest.mark.parametrize(
    ("case", "kernel"), [("c0", "linear"), ("c1", "linear"), ("c2", "gaussian"), ("c3", "linear")]
)
def test_matrix_nms_reproduces_the_original(nms_reference, case, kernel):
    data = {name: nms_reference[f"{case}_{name}"] for name in ("masks", "labels", "scores", "out_scores", "out_index")}
    scores, rows = matrix_nms(
        torch.from_numpy(data["masks"]),
        torch.from_numpy(data["labels"]).long(),
        torch.from_numpy(data["scores"]),
        kernel=kernel,
        sigma=2.0,
    )
    expected = np.zeros_like(data["scores"])
    # The original gives the third of three identical saturated masks 0 / 0.
    expected[data["out_index"]] = np.nan_to_num(data["out_scores"], nan=0.0)
    found = np.zeros_like(expected)
    found[rows.numpy()] = scores.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (scores.diff() <= 0).all()


def slow_matrix_nms(masks, labels, scores, kernel, sigma):
    order = sorted(range(len(scores)), key=lambda index: -scores[index])

    def iou(i, j):
        if labels[i] != labels[j]:
            return 0.0
        inter = float((masks[i] * masks[j]).sum())
        return inter / (masks[i].sum() + masks[j].sum() - inter)

    result = np.zeros(len(scores))
    for rank, j in enumerate(order):
        factors = [1.0]
        for better, i in enumerate(order[:rank]):
            worst = max([iou(k, i) for k in order[:better]], default=0.0)
            if kernel == "linear":
                factors.append((1 - iou(i, j)) / (1 - worst))
            else:
                factors.append(np.exp(-sigma * iou(i, j) ** 2) / np.exp(-sigma * worst**2))
        result[j] = scores[j] * min(factors)
    return result


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_matrix_nms_equals_its_definition(kernel):
    rng = np.random.default_rng(3)
    masks, labels, scores = rng.random((25, 40)) ** 4, rng.integers(0, 3, 25), rng.random(25)
    found, rows = matrix_nms(
        torch.from_numpy(masks), torch.from_numpy(labels), torch.from_numpy(scores), kernel=kernel, sigma=0.7
    )
    expected = slow_matrix_nms(masks, labels, scores, kernel, 0.7)
    np.testing.assert_allclose(found.numpy(), expected[rows.numpy()], atol=1e-12)


def test_the_settings_of_the_original_need_not_be_named():
    """A linear kernel; a sigma of 2 for the other one; masks cut at 0.4, more than 100 points, 100 pairs."""
    rng = np.random.default_rng(4)
    masks, labels, scores = rng.random((9, 40)) ** 4, np.zeros(9, int), rng.random(9)
    arrays = [torch.from_numpy(values) for values in (masks, labels, scores)]
    for options, kernel in (({}, "linear"), ({"kernel": "gaussian"}, "gaussian")):
        found, rows = matrix_nms(*arrays, **options)
        expected = slow_matrix_nms(masks, labels, scores, kernel, 2.0)
        np.testing.assert_allclose(found.numpy(), expected[rows.numpy()], atol=1e-12)
    # 101 masks that lie apart: each of 101 points, of which one is surely in it and the others are just likely enough.
    apart = torch.full((101, 101, 102), 1e-6)
    apart[range(101), range(101)] = torch.tensor([0.9] + [0.41] * 100 + [0.39])
    logits, classes = apart.flatten(1).logit(), torch.stack([torch.linspace(1, 2, 101), torch.zeros(101)], dim=1)
    found = select_instances(classes, logits)
    assert found["queries"].tolist() == list(range(100, 0, -1)) and (found["masks"].sum(dim=1) == 101).all()
    logits[100, 100 * 102 + 1] = -9  # one of 100 points
    assert select_instances(classes, logits)["queries"].tolist() == list(range(99, 0, -1))
    soft, classes = torch.from_numpy(rng.random((3, 400))), torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    means = torch.stack([row[row > 0.5].mean() for row in soft])
    expected = slow_matrix_nms(soft.numpy(), [0] * 3, classes.softmax(dim=1)[:, 0] * means, "gaussian", 2.0)
    decayed = select_instances(classes, soft.logit(), nms_kernel="gaussian")["scores"]
    np.testing.assert_allclose(decayed.numpy(), sorted(expected, reverse=True), rtol=1e-4)


def test_copies_of_a_saturated_mask_get_zero_and_never_nan():
    masks = torch.zeros(5, 30)
    masks[:4, :12] = 1
    masks[4, 20:] = 1
    scores, rows = matrix_nms(masks, torch.zeros(5, dtype=torch.long), torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]))
    assert rows.tolist()[:2] == [0, 4]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.5, 0, 0, 0]))


def test_matrix_nms_of_nothing_and_of_an_unknown_kernel():
    scores, rows = matrix_nms(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    assert scores.shape == rows.shape == (0,)
    with pytest.raises(ValueError, match="nms_kernel is 'hard'"):
        matrix_nms(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long), torch.zeros(1), kernel="hard")


@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_select_instances_reproduces_the_original(reference, case):
    data = np.load(reference / "mask_scoring.npz")
    logits = torch.from_numpy(data[f"{case}_mask_logits_f16"]).float()
    found = select_instances(
        torch.from_numpy(data[f"{case}_cls"]),
        logits,
        threshold=float(data[f"{case}_score_thr"]),
        mask_threshold=0.4,
        min_points=int(data[f"{case}_npoint_thr"]),
        max_instances=int(data[f"{case}_topk"]),
    )
    masks = np.unpackbits(data[f"{case}_out_masks_packed"], axis=1)[:, : logits.shape[1]].astype(bool)
    check_against_reference(
        found, data[f"{case}_out_query"], data[f"{case}_out_labels"], data[f"{case}_out_scores"], masks, atol=1e-5
    )


def check_against_reference(found, queries, labels, scores, masks, atol, mask_points=0):
    # Neighbouring scores may be closer than rounding, so rows are compared by (query, label).
    rows = {(int(q), int(label)): row for row, (q, label) in enumerate(zip(queries, labels, strict=True))}
    keys = list(zip(found["queries"].tolist(), found["labels"].tolist(), strict=True))
    assert sorted(keys) == sorted(rows)
    order = [rows[key] for key in keys]
    np.testing.assert_allclose(found["scores"].numpy(), scores[order], atol=atol)
    assert (found["scores"].diff() <= 0).all()
    assert (found["masks"].numpy() != masks[order]).sum(axis=1).max() <= mask_points


@pytest.mark.parametrize("frame", ["A", "B"])
def test_select_instances_on_the_original_networks_logits(large_reference, frame):
    data = np.load(large_reference / f"esam_sv_{frame}.npz")
    logits = torch.from_numpy(data["masks_h3_f16"]).float()
    found = select_instances(torch.from_numpy(data["cls_h3"]), logits)
    masks = np.unpackbits(data["post_masks_packed"], axis=1)[:, : logits.shape[1]].astype(bool)
    check_against_reference(
        found, data["post_query"], data["post_labels"], data["post_scores"], masks, atol=3e-3, mask_points=20
    )
    score, points = data["post2_thresholds"]
    second = select_instances(torch.from_numpy(data["cls_h3"]), logits, threshold=float(score), min_points=int(points))
    assert sorted(second["queries"].tolist()) == sorted(data["post2_query"].tolist())


@pytest.mark.parametrize("frame", ["A", "B"])
def test_superpoint_classes_on_the_original_networks_logits(large_reference, frame):
    data = np.load(large_reference / f"esam_sv_{frame}.npz")
    count = len(data["sem"])
    classes = superpoint_classes(torch.from_numpy(data["sem"]), torch.arange(count), count)
    np.testing.assert_array_equal(classes.numpy()[data["superpoints"]], data["semantic_map"])


def test_half_precision_logits_are_scored_in_float32():
    generator = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(20, 2, generator=generator), 3 * torch.randn(20, 400, generator=generator)
    half = select_instances(classes.bfloat16(), masks.bfloat16(), min_points=10)
    full = select_instances(classes.bfloat16().float(), masks.bfloat16().float(), min_points=10)
    assert half["scores"].dtype == torch.float32
    torch.testing.assert_close(half, full)


def test_thresholds_are_strict():
    logits = torch.full((1, 200), -20.0)
    logits[0, :100] = 20.0
    classes = torch.tensor([[20.0, -20.0]])
    assert len(select_instances(classes, logits, min_points=100)["scores"]) == 0
    assert len(select_instances(classes, logits, min_points=99)["scores"]) == 1
    assert len(select_instances(classes, logits, min_points=99, threshold=1.0)["scores"]) == 0
    # A logit of 0 is neither in the mask by which the score goes nor in one that is cut at 0.5.
    logits[0, 100:] = 0
    found = select_instances(classes, logits, min_points=99, mask_threshold=0.5)
    assert found["scores"].item() == pytest.approx(1) and found["masks"].sum() == 100


def slow_instance_map(masks, superpoint_ids, pixel_indices, superpoint_map):
    height, width = superpoint_map.shape
    result = np.full((height, width), -1)
    for pixel in range(height * width):
        point = np.flatnonzero(pixel_indices == pixel)
        for row, mask in enumerate(masks):
            if len(point):
                hit = mask[point[0]]
            else:
                superpoint = superpoint_map.flat[pixel]
                hit = superpoint >= 0 and mask[superpoint_ids == superpoint].mean() > 0.5
            if hit:
                result.flat[pixel] = row
                break
    return result


def test_instance_map_equals_its_definition():
    rng = np.random.default_rng(0)
    superpoint_map = rng.integers(-1, 6, (9, 11))
    inside = np.flatnonzero(superpoint_map >= 0)
    pixels = np.sort(rng.choice(inside, 45, replace=False))
    superpoint_ids = superpoint_map.flat[pixels]
    assert len(np.unique(superpoint_ids)) == 6
    masks = rng.random((4, 45)) < rng.random(6)[superpoint_ids]
    found = instance_map(*(torch.from_numpy(value) for value in (masks, superpoint_ids, pixels, superpoint_map)))
    assert found.dtype == torch.int32
    np.testing.assert_array_equal(found.numpy(), slow_instance_map(masks, superpoint_ids, pixels, superpoint_map))


def test_instance_map_without_instances_is_empty():
    found = instance_map(
        torch.zeros(0, 3, dtype=torch.bool),
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 2, 3]),
        torch.tensor([[0, 0, 1, 1]]),
    )
    assert found.tolist() == [[-1, -1, -1, -1]]


def test_masks_over_pixels_follow_points_and_superpoints():
    superpoint_map = torch.tensor([[0, 0, 0, 1], [0, 0, 2, -1], [3, 3, 2, -1]])
    # Two of the three points of superpoint 0 are in the first mask, one of two of superpoint 3; 2 has no point.
    pixels, ids = torch.tensor([0, 1, 4, 3, 9, 7]), torch.tensor([0, 0, 0, 1, 3, 3])
    masks = torch.tensor([[True, True, False, True, True, False], [False, False, True, False, True, True]])
    found = pixel_masks(masks, ids, pixels, superpoint_map)
    assert found.dtype == torch.bool
    assert found[0].int().tolist() == [[1, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert found[1].int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]]
    # A superpoint may be larger than the last one with a point, or than the last one with a pixel.
    far = torch.where(superpoint_map == 2, 7, superpoint_map)
    assert torch.equal(pixel_masks(masks, ids, pixels, far), found)
    ids[5], pixels[5] = 8, 7
    shown = pixel_masks(masks, ids, pixels, superpoint_map)[0].int().tolist()
    assert shown == [[1, 1, 1, 1], [0, 1, 0, 0], [1, 1, 0, 0]]


def test_paint_map_leaves_pixels_without_superpoint_empty():
    painted = paint_map(
        torch.tensor([5]), torch.tensor([8, 9]), torch.tensor([1]), torch.tensor([[0, 0, 1], [-1, 1, -1]])
    )
    assert painted.tolist() == [[8, 5, 9], [-1, 9, -1]]


def test_semantics_need_a_query_for_every_superpoint():
    with pytest.raises(ValueError, match="1 of 3 superpoints have no query"):
        superpoint_classes(torch.zeros(2, 4), torch.tensor([0, 2]), 3)


def test_the_background_class_is_never_given():
    logits = torch.tensor([[0.0, 2.0, 1.0, 9.0], [3.0, 0.0, 1.0, 9.0]])
    assert superpoint_classes(logits, torch.tensor([1, 0]), 2).tolist() == [0, 1]


def test_the_classes_of_a_mask_are_the_mean_over_its_points():
    """Four points in three superpoints, whose queries come in another order; the last column is left out."""
    logits = torch.tensor([[0.6, 0.3, 0.1, 0.9], [0.2, 0.2, 0.6, 0.9], [0.5, 0.25, 0.25, 0.9]]).log()
    masks = torch.tensor([[True, True, True, False], [False, False, False, True], [False] * 4])
    found = mask_classes(masks, logits, torch.tensor([2, 0, 1]), torch.tensor([0, 0, 1, 2]), stuff_classes=(0,))
    # Of superpoint 0 query 1, of superpoint 1 query 2, of superpoint 2 query 0. Walls keep their share.
    first = [0, (2 * 0.2 + 0.25) / 3, (2 * 0.6 + 0.25) / 3]
    torch.testing.assert_close(found, torch.tensor([first, [0, 0.3, 0.1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="1 of 3 superpoints have no query"):
        mask_classes(masks, logits[:2], torch.tensor([2, 0]), torch.tensor([0, 0, 1, 2]), stuff_classes=())


def test_padding_is_left_out_and_nothing_is_copied_without_any():
    rows = torch.arange(6).reshape(3, 2)
    assert rows[real_queries(torch.tensor([True, False, True]))].tolist() == [[0, 1], [4, 5]]
    assert rows[real_queries(torch.tensor([True] * 3))].data_ptr() == rows.data_ptr()


@pytest.mark.parametrize(
    ("label_tells", "threshold", "name"), [(False, 0.6, "chair"), (False, 0.61, "object"), (True, 0.1, "object")]
)
def test_a_class_is_a_name_where_labels_say_nothing(label_tells, threshold, name):
    found = describe_class(
        torch.tensor([0.0, 0.6], dtype=torch.float64), {0: "wall", 1: "chair"}, "object", threshold,
        label_tells=label_tells,
    )  # fmt: skip
    expected = {"semantic_label_id": 1, "semantic_label": "chair", "semantic_probability": 0.6, "name": name}
    assert found == expected and type(found["semantic_probability"]) is float


@pytest.fixture
def batch():
    """Two frames of three points and two; the second one was no image."""
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(2, 3, 3, generator=generator))[0]
    return {
        "points": torch.randn(2, 3, 3, generator=generator),
        "point_mask": torch.tensor([[True] * 3, [True, True, False]]),
        "superpoint_ids": torch.tensor([[0, 1, 1], [0, 0, -1]]),
        "pixel_indices": torch.tensor([[4, 0, 2], [1, 2, -1]]),
        "point_rotations": rotations,
        "point_offsets": torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 0.0]]),
        "point_scales": torch.tensor([2.0, 0.5]),
        "superpoint_maps": [torch.tensor([[1, 1, 1], [-1, 0, 0]]), None],
        "up_sources": ["pose", "camera"],
    }


@pytest.mark.parametrize("is_numpy", [False, True])
def test_frames_without_their_padding_lie_where_they_were(batch, is_numpy):
    """The network's points are the input's, moved by the offset, turned, and then scaled."""
    given = dict(batch)
    if is_numpy:
        given = {name: value.numpy() if torch.is_tensor(value) else value for name, value in batch.items()}
        given["superpoint_maps"] = [batch["superpoint_maps"][0].numpy(), None]
    for index, (count, frame) in enumerate(zip((3, 2), unpad_frames(given), strict=True)):
        assert frame["count"] == count and frame["up"] == ("pose", "camera")[index]
        for name in ("superpoint_ids", "pixel_indices"):
            assert torch.equal(frame[name], batch[name][index, :count])
        again = [
            batch["point_scales"][index] * (batch["point_rotations"][index] @ (point - batch["point_offsets"][index]))
            for point in frame["points"]
        ]
        torch.testing.assert_close(torch.stack(again), batch["points"][index, :count])
        if index == 0:
            assert torch.equal(frame["superpoint_map"], batch["superpoint_maps"][0])
        else:
            assert frame["superpoint_map"] is None
    half = unpad_frames({**batch, "points": batch["points"].half()})[0]["points"]
    expected = unpad_frames({**batch, "points": batch["points"].half().float()})[0]["points"]
    assert half.dtype == torch.float32 and torch.equal(half, expected)


def test_segments_are_what_the_map_shows():
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[True, True, False, False, False], [False] * 4 + [True], [False, True, True, True, False]])
    found = {
        "masks": masks,
        "labels": torch.tensor([1, 0, 0]),
        "scores": torch.tensor([0.75, 0.5, 0.25]),
        "num_parts": torch.tensor([2, 1, -1]),
    }
    names = {0: "chair", 1: "bed"}
    expected = [
        {"id": 0, "label_id": 1, "label": "bed", "score": 0.75, "num_points": 2, "num_parts": 2},
        {"id": 1, "label_id": 0, "label": "chair", "score": 0.5, "num_points": 1, "num_parts": 1},
        {"id": 2, "label_id": 0, "label": "chair", "score": 0.25, "num_points": 3, "num_parts": None},
    ]
    expected = [{**e, **describe_points(points[mask].numpy())} for e, mask in zip(expected, masks, strict=True)]
    assert describe_instances(found, points, names) == expected
    for shown in ([], [0], [2], [0, 2], [0, 1, 2]):
        segmentation = torch.tensor([[-1, *shown]], dtype=torch.int32)
        assert describe_instances(found, points, names, segmentation) == [expected[index] for index in shown]


def test_a_frame_s_results_belong_together(batch):
    """Two queries of which the second is surer; logits at padding say nothing."""
    frame = unpad_frames(batch)[0]
    classes = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    logits = torch.full((2, 6), 30.0)
    logits[:, :3] = torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, 9.0]])
    settings = {"threshold": 0.1, "min_points": 0, "max_instances": 5}
    found = instances_of_frame(classes, logits, frame, {0: "object"}, **settings)
    assert found["point_masks"].tolist() == [[False, True, True], [True, False, False]]
    torch.testing.assert_close(found["scores"], classes.flip(0).softmax(dim=1)[:, 0], rtol=1e-3, atol=0)
    assert found["labels"].tolist() == [0, 0] and found["queries"].tolist() == [1, 0]
    assert found["num_parts"].tolist() == [-1, -1] and found["up"] == "pose"
    assert found["segmentation"].tolist() == [[0, 0, 0], [-1, 1, 1]]
    assert [segment["id"] for segment in found["segments_info"]] == [0, 1]
    assert found["segments_info"][0]["centroid"] == pytest.approx(frame["points"][1:].mean(dim=0).tolist(), abs=1e-6)
    # Parts are looked for where there is a gap, by the same limits.
    parts = instances_of_frame(classes, logits, frame, {0: "object"}, part_gap=9.0, **settings)
    assert parts["num_parts"].tolist() == [1, 1] and torch.equal(parts["point_masks"], found["point_masks"])
    cloud = instances_of_frame(classes, logits, {**frame, "superpoint_map": None}, {0: "object"}, **settings)
    assert cloud["segmentation"] is None and cloud["segments_info"] == found["segments_info"]
    for gap in (-0.01, float("nan")):
        with pytest.raises(ValueError, match=f"part_gap is {gap}; expected metres, at least 0"):
            instances_of_frame(classes, logits, frame, {0: "object"}, part_gap=gap, **settings)


def test_semantics_of_points_and_of_pixels(batch):
    frame = unpad_frames(batch)[0]
    logits = torch.tensor([[0.0, 2.0, 1.0, 9.0], [3.0, 0.0, 1.0, 9.0]])
    # Query 0 stands for superpoint 1.
    found = semantics_of_frame(logits, torch.tensor([1, 0]), frame)
    assert found["point_labels"].tolist() == [0, 1, 1]
    assert found["segmentation"].tolist() == [[1, 1, 1], [-1, 0, 0]]
    cloud = semantics_of_frame(logits, torch.tensor([1, 0]), {**frame, "superpoint_map": None})
    assert cloud["segmentation"] is None and cloud["point_labels"].tolist() == [0, 1, 1]
