"""The losses of windows: against slow forms, summed over the frames, and with gradients through the memory."""

import numpy as np
import pytest
import torch

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.configuration_bifusion import BiFusionLossConfig
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS
from bifusion_hf.layers.frame_memory import FrameMemory
from bifusion_hf.losses import BiFusionCriterion
from bifusion_hf.losses.instance import box_iou, box_loss
from bifusion_hf.losses.matcher import Matches
from bifusion_hf.losses.merging import merge_loss, merge_windows
from bifusion_hf.losses.targets import batch_targets


FRAMES, WINDOWS, IDS = 4, 2, 5
OFF = dict.fromkeys(("consistency_loss_weight", "spatial_loss_weight", "noview_loss_weight"), 0.0)


def random_window_batch(seed):
    """Targets of frames in which other objects are seen each time, and queries of a part of their superpoints."""
    rng = np.random.default_rng(seed)
    rows, points, superpoints = FRAMES * WINDOWS, 60, 12
    ids = torch.from_numpy(rng.integers(0, superpoints, (rows, points)))
    ids[:, :superpoints] = torch.arange(superpoints)
    masks, instance_ids = [], []
    for _ in range(rows):
        names = rng.permutation(IDS)[: rng.integers(0, IDS + 1)]
        owner = rng.integers(0, 7, superpoints)
        masks.append(torch.stack([torch.from_numpy(owner == name)[ids[len(masks)]] for name in names])
                     if len(names) else torch.zeros(0, points, dtype=torch.bool))  # fmt: skip
        instance_ids.append(torch.from_numpy(names).long())
    targets = batch_targets(
        masks,
        [torch.zeros(len(names), dtype=torch.int64) for names in instance_ids],
        None,
        ids,
        torch.ones(rows, points, dtype=torch.bool),
        superpoints,
        instance_ids=instance_ids,
    )
    queries = torch.full((rows, 9), -1)
    for row in range(rows):
        chosen = torch.from_numpy(np.sort(rng.permutation(superpoints)[: rng.integers(5, 10)]))
        queries[row, : len(chosen)] = chosen
    embeddings = torch.from_numpy(rng.normal(size=(rows, 9, 6))).requires_grad_()
    return targets, queries, embeddings


def slow_merge_loss(targets, queries, embeddings, temperature):
    """For each window the sum of the terms, and how many pairs of frames have any."""
    result = []
    for window in range(WINDOWS):
        total, pairs = 0.0, 0
        for step in range(FRAMES - 1):
            features = []
            for row in (step * WINDOWS + window, (step + 1) * WINDOWS + window):
                means = {}
                for instance, name in enumerate(targets.instance_ids[row].tolist()):
                    inside = [
                        embeddings[row, query]
                        for query, superpoint in enumerate(queries[row].tolist())
                        if superpoint >= 0 and targets.superpoint_masks[row][instance, superpoint]
                    ]
                    if inside:
                        means[name] = sum(inside) / len(inside)
                features.append(means)
            for one, other in (features, features[::-1]):
                shared = sorted(set(one) & set(other))
                for name in shared:
                    scores = torch.stack([one[name] @ other[column] / temperature for column in shared])
                    total = total - torch.log_softmax(scores, 0)[shared.index(name)] / len(shared)
            pairs += len(set(features[0]) & set(features[1])) > 1
        result.append((total, pairs))
    return result


def test_the_merge_loss_is_that_of_the_slow_form_with_its_gradient():
    without = 0
    for seed in range(30):
        targets, queries, embeddings = random_window_batch(seed)
        found = merge_loss(embeddings, targets, queries, FRAMES, 0.07)
        expected = slow_merge_loss(targets, queries, embeddings, 0.07)
        windows = merge_windows(targets, queries, FRAMES)
        assert windows.dtype == torch.bool and windows.tolist() == [pairs > 0 for _, pairs in expected]
        without += sum(pairs == 0 for _, pairs in expected)
        values = torch.stack([torch.as_tensor(total, dtype=torch.float64) for total, _ in expected])
        torch.testing.assert_close(found, values, rtol=1e-10, atol=1e-10)
        if any(pairs for _, pairs in expected):
            gradients = [torch.autograd.grad(loss.sum(), embeddings)[0] for loss in (found, values)]
            torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert without > 0


def test_windows_are_counted_by_their_length_and_single_frames_have_no_pair():
    criterion = BiFusionCriterion(BiFusionLossConfig(merge_weight=1.0, **OFF))
    targets, queries, _ = random_window_batch(26)
    expected = int(merge_windows(targets, queries, FRAMES).sum())
    assert int(criterion.count_samples(targets, queries, window_frames=FRAMES)["loss_merge"]) == expected > 0
    assert int(criterion.count_samples(targets, queries)["loss_merge"]) == 0


def test_the_merge_loss_of_16_bit_embeddings_is_that_of_the_same_numbers_in_float32():
    total = 0
    for seed in range(6):
        targets, queries, embeddings = random_window_batch(seed)
        embeddings = embeddings.detach().bfloat16()
        found = merge_loss(embeddings, targets, queries, FRAMES, 0.07)
        assert found.dtype == torch.float32
        assert torch.equal(found, merge_loss(embeddings.float(), targets, queries, FRAMES, 0.07))
        total += float(found.sum())
    assert total > 0


def test_a_window_without_a_pair_has_exactly_nothing_and_stays_in_the_graph():
    targets, queries, embeddings = random_window_batch(0)
    targets.instance_ids = [100 * row + ids for row, ids in enumerate(targets.instance_ids)]
    loss = merge_loss(embeddings, targets, queries, FRAMES, 0.07)
    assert loss.tolist() == [0.0, 0.0] and not merge_windows(targets, queries, FRAMES).any()
    loss.sum().backward()
    assert not embeddings.grad.any()


def test_the_box_loss_is_one_minus_the_share_of_common_volume():
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-1, 1, (2, 6, 3)), rng.uniform(0.5, 2, (2, 6, 3))
    boxes, truth = torch.from_numpy(np.concatenate([corner, corner + size], axis=2))
    # The share of many random places, as precise as there are many of them.
    places = rng.uniform(-1, 3, (200_000, 3))
    inside = [((places >= box[:3]) & (places <= box[3:])).all(axis=1) for box in (*boxes.numpy(), *truth.numpy())]
    iou = [(a & b).sum() / (a | b).sum() for a, b in zip(inside[:6], inside[6:], strict=True)]
    np.testing.assert_allclose(box_iou(boxes, truth), iou, atol=0.02)
    assert (box_iou(boxes, boxes) == 1).all() and not box_iou(boxes, boxes + 9).any()
    assert not box_iou(torch.zeros(1, 6), torch.zeros(1, 6)).any()

    # Queries 3, 0 of the first sample, and query 1 of the second, belong to instances.
    pairs = Matches([torch.tensor([3, 0]), torch.tensor([1])], [torch.tensor([0, 2]), torch.tensor([0])])
    predicted = torch.zeros(2, 4, 6, dtype=torch.float64)
    predicted[0, 3], predicted[0, 0], predicted[1, 1] = boxes[:3]
    targets = [torch.stack([truth[0], truth[5], truth[1]]), truth[2:3]]
    one = 1 - box_iou(boxes[:3], truth[:3])
    expected = torch.stack([one[:2].mean(), one[2]])
    torch.testing.assert_close(box_loss(predicted.requires_grad_(), pairs, targets), expected)
    # At least, and at most, in the precision of the prediction.
    half = box_loss(predicted.half(), pairs, targets)
    assert half.dtype == torch.float32 and torch.equal(half, box_loss(predicted.half().float(), pairs, targets))
    nothing = Matches([torch.zeros(0, dtype=torch.int64)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    loss = box_loss(predicted, nothing, targets)
    assert loss.tolist() == [0, 0] and loss.requires_grad


ONLINE = {"use_box_head": True, "use_merge_head": "layer", "min_query_fraction": 1.0, "num_semantic_labels": 6}


def network(small_config, adapters=True, **losses):
    point_config = {"stem_channels": 4, "planes": [4, 4, 8, 8, 8, 8, 8, 12], "blocks": [1] * 8}
    weights = {"box_weight": 0.5, "merge_weight": 2.0, "stage_schedule": "none", **losses}
    torch.manual_seed(0)
    config = small_config(
        point_config={**point_config, "use_frame_adapters": adapters}, voxel_size=0.1, loss_config=weights, **ONLINE
    )
    model = BiFusionForInstanceSegmentation(config).eval().double()
    with torch.no_grad():
        for adapter in model.model.encoder.point_encoder.frame_adapters or []:
            torch.nn.init.uniform_(adapter.norm_mix.weight, 0.5, 1.0)
    return model


@pytest.fixture(scope="module")
def window(make_batch):
    """Three frames of two windows, of equal size, so that each frame alone is a batch of its own."""
    batch = make_batch((150,) * 6, instances=3, visible=1.0)
    batch = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }
    batch["instance_ids"] = [torch.arange(3)] * 6
    low = torch.rand(6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch["object_boxes"] = list(torch.cat([low - 1, low + 0.5], dim=2))
    return batch


def frame_of(batch, time):
    return {name: value[2 * time : 2 * time + 2] for name, value in batch.items()}


def test_a_window_is_its_frames_one_after_the_other(small_config, window):
    model = network(small_config, merge_weight=0.0)
    with torch.no_grad():
        whole = model(**window, window_frames=3)
        memory, losses = FrameMemory(), []
        for time in range(3):
            one = model(**frame_of(window, time), frame_memory=memory)
            memory = one.frame_memory
            losses.append(one)
            for name in ("masks_queries_logits", "class_queries_logits", "pred_boxes", "point_features"):
                torch.testing.assert_close(getattr(whole, name)[2 * time : 2 * time + 2], getattr(one, name))
        for mine, other in zip(whole.frame_memory.levels, memory.levels, strict=True):
            torch.testing.assert_close(mine.features, other.features)
        # Every sample has part in every term, so that counts are those of the frames.
        torch.testing.assert_close(whole.loss, sum(one.loss for one in losses))
        first = model(**frame_of(window, 2))
        assert (first.point_features - losses[2].point_features).abs().max() > 1e-3


def test_a_window_goes_on_from_the_memory_before_it(small_config, window):
    model = network(small_config, merge_weight=0.0)
    later = {name: value[2:] for name, value in window.items()}
    with torch.no_grad():
        whole = model(**window, window_frames=3)
        before = model(**frame_of(window, 0), frame_memory=FrameMemory()).frame_memory
        rest = model(**later, window_frames=2, frame_memory=before)
        forgetful = model(**later, window_frames=2)
    torch.testing.assert_close(rest.point_features, whole.point_features[2:])
    # Each of the two frames has the term.
    torch.testing.assert_close(rest.weighted_loss_dict["loss_box"], 2 * 0.5 * rest.loss_dict["loss_box"])
    with torch.no_grad():
        single = model(**frame_of(window, 1), window_frames=1, frame_memory=before)
    torch.testing.assert_close(single.point_features, whole.point_features[2:4])
    assert (forgetful.point_features - rest.point_features).abs().max() > 1e-3


def test_the_merge_loss_comes_once_a_window(small_config, window):
    model = network(small_config)
    with torch.no_grad():
        found = model(**window, window_frames=3)
        targets = batch_targets(
            *(window[name] for name in ("mask_labels", "class_labels", "semantic_labels", "superpoint_ids")),
            window["point_mask"], int(window["superpoint_ids"].max()) + 1, instance_ids=window["instance_ids"],
        )  # fmt: skip
        values = merge_loss(found.merge_embeddings, targets, found.query_superpoints, 3, 0.07)
        others = network(small_config, merge_weight=0.0)(**window, window_frames=3)
    torch.testing.assert_close(found.loss_dict["loss_merge"], values.mean())
    torch.testing.assert_close(found.weighted_loss_dict["loss_merge"], 2 * values.mean())
    torch.testing.assert_close(found.loss, others.loss + 2 * values.mean())
    assert int(model.count_loss_samples(**window, window_frames=3)["loss_merge"]) == 2
    torch.testing.assert_close(
        found.weighted_loss_dict["loss_box"], 3 * 0.5 * found.loss_dict["loss_box"], rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("adapters", [True, False])
def test_a_later_frame_has_its_gradient_from_what_was_remembered(adapters, small_config, window):
    model = network(small_config, adapters)
    inputs = {name: window[name] for name in FORWARD_INPUTS}
    colors = window["point_colors"].clone().requires_grad_()

    def last(colors):
        return model(**{**inputs, "point_colors": colors}, window_frames=3).point_features[4:].square().sum()

    gradient = torch.autograd.grad(last(colors), colors)[0][:2]
    if not adapters:
        assert not gradient.any()
        return
    assert gradient.abs().max() > 1e-6
    direction = torch.zeros_like(colors)
    direction[:2] = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-6
    with torch.no_grad():
        slope = (last(colors + step * direction) - last(colors - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction[:2]).sum(), slope, rtol=1e-4, atol=1e-8)


def test_adapters_change_nothing_at_the_start(small_config, window):
    inputs = {name: window[name] for name in FORWARD_INPUTS}
    plain = network(small_config, adapters=False)
    fresh = BiFusionForInstanceSegmentation(network(small_config).config).eval().double()
    missing = fresh.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all("frame_adapters" in name for name in missing)
    with torch.no_grad():
        torch.testing.assert_close(fresh(**inputs).point_features, plain(**inputs).point_features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_frames": 4}, "window_frames is 4; expected a divisor of the 6 frames"),
        ({"object_boxes": None}, "loss_box has a weight, so object_boxes is needed"),
        ({"instance_ids": None}, "loss_merge has a weight, so instance_ids is needed"),
        ({"object_boxes": [torch.zeros(2, 6)] * 6}, r"object_boxes has shapes \[\(2, 6\).*; expected \[\(3, 6\)"),
    ],
)
def test_what_is_missing_is_named(change, message, small_config, window):
    with pytest.raises(ValueError, match=message):
        network(small_config)(**{**window, "window_frames": 3, **change})


@pytest.mark.parametrize("weight", ["box_weight", "merge_weight"])
def test_a_loss_without_its_head_is_refused(weight, small_config):
    with pytest.raises(Exception, match=f"loss_config.{weight} needs use_"):
        small_config(loss_config={weight: 1.0})
    with pytest.raises(Exception, match="merge_temperature must be positive"):
        small_config(loss_config={"merge_temperature": 0.0})
