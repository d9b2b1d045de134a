"""From the network's logits to scored instances and maps, one frame at a time.

Follows the inference of ESAM (Xu et al., "EmbodiedSAM", ICLR 2025), with matrix non-maximum suppression from SOLOv2
(Wang et al., NeurIPS 2020). Q queries, C labels, N real (unpadded) points, S superpoints, K instances.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .boxes import describe_points
from .labels import NONE


# Instances need a higher score, where nothing else is said.
SCORE_THRESHOLD = 0.5


def real_queries(query_mask: torch.Tensor) -> torch.Tensor | slice:
    """What takes the rows of [Q, ...] that are no padding: all without a copy where none is, since masks are large."""
    return slice(None) if bool(query_mask.all()) else query_mask.nonzero().squeeze(1)


def matrix_nms(
    masks: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor, *, kernel: str = "linear", sigma: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decays scores by the overlap with better instances of the same label; removes nothing.

    Args:
        masks: float [K, N], soft masks in [0, 1].
        labels: int64 [K].
        scores: float [K].
        kernel: `"linear"`: (1 - iou) / (1 - worst iou of the better one); `"gaussian"`: the same with
            exp(-sigma * iou^2).
        sigma: Of the Gaussian kernel.

    Returns:
        The decayed scores in descending order, float [K], and the input row of each, int64 [K]. A mask that is an
        exact copy of a better one gets 0, however many copies there are.

    Raises:
        ValueError: Unknown kernel.
    """
    if kernel not in ("linear", "gaussian"):
        raise ValueError(f"nms_kernel is {kernel!r}; expected 'linear' or 'gaussian'")
    if len(scores) == 0:
        return scores, labels
    tiny = torch.finfo(masks.dtype).tiny
    order = torch.sort(scores, descending=True, stable=True).indices
    labels, scores = labels[order], scores[order]
    # Masks are large, their overlaps are not.
    intersection = (masks @ masks.T)[order][:, order]
    area = masks.sum(dim=1)[order]
    union = (area[:, None] + area[None, :] - intersection).clamp(min=tiny)
    # Rounding may lift the IoU of equal masks above 1, which would turn the quotient negative.
    iou = (intersection / union).clamp(max=1).triu(diagonal=1)
    iou = iou * (labels[:, None] == labels[None, :])
    # Row i decays row j > i, less so if i itself is suppressed by a still better one.
    worst = iou.max(dim=0).values[:, None]
    if kernel == "linear":
        decay = (1 - iou) / (1 - worst).clamp(min=tiny)
    else:
        decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * worst**2)
    scores, rank = torch.sort(scores * decay.min(dim=0).values, descending=True, stable=True)
    return scores, order[rank]


def select_instances(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    *,
    threshold: float = 0.0,
    mask_threshold: float = 0.4,
    min_points: float = 100,
    max_instances: int = 100,
    nms_kernel: str = "linear",
    nms_sigma: float = 2.0,
) -> dict[str, torch.Tensor]:
    """Scores, de-duplicates and binarises the queries of one frame.

    The best (query, label) pairs are kept, their scores multiplied by the mean probability inside the mask, decayed
    by `matrix_nms` on the soft masks, and masks cut at `mask_threshold`.

    Args:
        class_logits: [Q, C + 1], the last column is "no object".
        mask_logits: [Q, N].
        threshold: Only scores above it are kept.
        mask_threshold: On the probability of a point.
        min_points: Only masks of more points are kept.
        max_instances: Number of (query, label) pairs.
        nms_kernel: See `matrix_nms`.
        nms_sigma: See `matrix_nms`.

    Returns:
        In descending order of score: `scores` float32 [K], `labels` int64 [K], `masks` bool [K, N], `queries`
        int64 [K].
    """
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]
    num_labels = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    if scores.device.type == "cpu":
        # Scores only fall from here on, and what is lower makes none of a higher one fall: the rest is not looked at.
        # On a GPU to wait for their number costs more.
        above = scores > threshold
        pairs, scores = pairs[above], scores[above]
    queries, labels = pairs // num_labels, pairs % num_labels
    logits = mask_logits[queries].float()
    soft = logits.sigmoid()
    inside = logits > 0
    scores = scores * (soft * inside).sum(dim=1) / (inside.sum(dim=1) + 1e-6)
    scores, rows = matrix_nms(soft, labels, scores, kernel=nms_kernel, sigma=nms_sigma)
    masks = soft > mask_threshold
    kept = ((scores > threshold) & (masks.sum(dim=1) > min_points)[rows]).nonzero().squeeze(1)
    scores, rows = scores[kept], rows[kept]
    return {"scores": scores, "labels": labels[rows], "masks": masks[rows], "queries": queries[rows]}


def _superpoint_majority(masks: torch.Tensor, superpoint_ids: torch.Tensor, num_superpoints: int) -> torch.Tensor:
    """Superpoints of which more than half of the points lie in the mask, bool [K, S]."""
    votes = masks.new_zeros(len(masks), num_superpoints, dtype=torch.float32)
    votes.index_add_(1, superpoint_ids, masks.float())
    counts = torch.bincount(superpoint_ids, minlength=num_superpoints)
    return votes > 0.5 * counts


def pixel_masks(
    masks: torch.Tensor, superpoint_ids: torch.Tensor, pixel_indices: torch.Tensor, superpoint_map: torch.Tensor
) -> torch.Tensor:
    """Masks over points as masks over pixels: a pixel between points goes by the majority of its superpoint.

    Args:
        masks: bool [K, N].
        superpoint_ids: int64 [N].
        pixel_indices: int64 [N], flat pixel of each point.
        superpoint_map: int [H, W], -1 = none.

    Returns:
        bool [K, H, W].
    """
    # A superpoint of the map may be larger than the last one with a point; the entry behind it answers for -1.
    count = max(int(superpoint_ids.max()), int(superpoint_map.max())) + 1
    inside = torch.cat([_superpoint_majority(masks, superpoint_ids, count), masks.new_zeros(len(masks), 1)], dim=1)
    painted = inside[:, superpoint_map.long().flatten()]
    painted[:, pixel_indices] = masks
    return painted.unflatten(1, tuple(superpoint_map.shape))


def _first_true(masks: torch.Tensor) -> torch.Tensor:
    """The first row of bool [K, X] that is true in each column, int64 [X], `NONE` where no row is."""
    if len(masks) == 0:
        return torch.full((masks.shape[1],), NONE, dtype=torch.int64, device=masks.device)
    # The largest rank is that of the first row, and 0 where there is none: argmax would take many times as long.
    ranks = torch.arange(len(masks), 0, -1, dtype=torch.int32, device=masks.device).unsqueeze(1)
    highest = (masks * ranks).amax(dim=0)
    return torch.where(highest > 0, len(masks) - highest, NONE).long()


def paint_map(
    point_values: torch.Tensor,
    superpoint_values: torch.Tensor,
    pixel_indices: torch.Tensor,
    superpoint_map: torch.Tensor,
) -> torch.Tensor:
    """A pixel map from the points' own values, and the superpoint's value at all other pixels.

    Args:
        point_values: int64 [N].
        superpoint_values: int64 [S].
        pixel_indices: int64 [N], flat pixel of each point.
        superpoint_map: int [H, W], -1 = none.

    Returns:
        int32 [H, W], `NONE` where there is neither point nor superpoint.
    """
    # The entry behind the last superpoint answers for the index -1.
    values = torch.cat([superpoint_values, superpoint_values.new_full((1,), NONE)])
    painted = values[superpoint_map.long().flatten()]
    painted[pixel_indices] = point_values
    return painted.view(superpoint_map.shape).int()


def instance_map(
    masks: torch.Tensor, superpoint_ids: torch.Tensor, pixel_indices: torch.Tensor, superpoint_map: torch.Tensor
) -> torch.Tensor:
    """The pixel map of one frame's instances.

    A sampled pixel takes its point's instance, every other pixel that of its superpoint (more than half of its points
    in the mask). Where masks overlap the first row, the one of the highest score, wins.

    Args:
        masks: bool [K, N], in descending order of score.
        superpoint_ids: int64 [N].
        pixel_indices: int64 [N].
        superpoint_map: int [H, W] with the same ids, -1 = none.

    Returns:
        int32 [H, W], rows of `masks`, `NONE` = no instance.
    """
    num_superpoints = int(superpoint_ids.max()) + 1
    of_superpoints = _first_true(_superpoint_majority(masks, superpoint_ids, num_superpoints))
    return paint_map(_first_true(masks), of_superpoints, pixel_indices, superpoint_map)


def superpoint_classes(
    semantic_logits: torch.Tensor, query_superpoints: torch.Tensor, num_superpoints: int
) -> torch.Tensor:
    """The semantic class of each superpoint from the query that stands for it.

    Args:
        semantic_logits: [Q, C + 1]; the last column, "none of them", is left out.
        query_superpoints: int64 [Q].
        num_superpoints: S.

    Returns:
        int64 [S].

    Raises:
        ValueError: A superpoint has no query (the model was in training mode).
    """
    return semantic_logits[_query_of_superpoint(query_superpoints, num_superpoints), :-1].argmax(dim=1)


def _query_of_superpoint(query_superpoints: torch.Tensor, num_superpoints: int) -> torch.Tensor:
    queries = torch.full((num_superpoints,), NONE, dtype=torch.int64, device=query_superpoints.device)
    queries[query_superpoints] = torch.arange(len(query_superpoints), device=query_superpoints.device)
    missing = int((queries == NONE).sum())
    if missing:
        raise ValueError(
            f"{missing} of {num_superpoints} superpoints have no query; a semantic map needs all, so run the model in "
            "eval mode"
        )
    return queries


def mask_classes(
    masks: torch.Tensor,
    semantic_logits: torch.Tensor,
    query_superpoints: torch.Tensor,
    superpoint_ids: torch.Tensor,
    stuff_classes: Sequence[int],
) -> torch.Tensor:
    """How probable each semantic class is for each mask: the mean over its points of what their superpoints say.

    Args:
        masks: bool [K, N].
        semantic_logits: [Q, C + 1]; the last column, which nothing trains, is left out.
        query_superpoints: int64 [Q].
        superpoint_ids: int64 [N].
        stuff_classes: Classes that no instance has. They get 0 and keep their share, so that what looks like a wall
            is surely nothing else.

    Returns:
        float32 [K, C], rows with a sum of at most 1.

    Raises:
        ValueError: A superpoint has no query.
    """
    num_superpoints = int(superpoint_ids.max()) + 1
    queries = _query_of_superpoint(query_superpoints, num_superpoints)
    probabilities = semantic_logits[queries, :-1].float().softmax(dim=1)
    probabilities[:, list(stuff_classes)] = 0
    weights = probabilities.new_zeros(len(masks), num_superpoints)
    weights.index_add_(1, superpoint_ids, masks.float())
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1) @ probabilities


def describe_class(
    probabilities: Sequence[float], names: Mapping[int, str], label: str, threshold: float, *, label_tells: bool
) -> dict[str, Any]:
    """The semantic entries of a segment.

    Args:
        probabilities: float [C], a row of `mask_classes`.
        names: Of the semantic classes.
        label: Of the instance.
        threshold: A semantic class is taken for a name from this probability on.
        label_tells: Labels tell classes apart; else all instances have the same one.

    Returns:
        `semantic_label_id`, `semantic_label` and `semantic_probability`, the most probable class; `name`, what to call
        the segment: its label, or where that says nothing the semantic class, if it is probable enough.
    """
    probabilities = torch.as_tensor(probabilities)
    index = int(probabilities.argmax())
    probability = float(probabilities[index])
    return {
        "semantic_label_id": index,
        "semantic_label": names[index],
        "semantic_probability": probability,
        "name": label if label_tells or probability < threshold else names[index],
    }


def unpad_frames(inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The unpadded parts of a batch that post-processing needs, on the CPU.

    Args:
        inputs: A batch of the processor.

    Returns:
        For each frame `count`, the number N of its points; `points` float32 [N, 3] in the place they had in the input;
        `superpoint_ids` and `pixel_indices` int64 [N]; `superpoint_map` int32 [H, W] or None; `up`, see the processor.
    """
    frames = []
    for index, mask in enumerate(torch.as_tensor(inputs["point_mask"]).cpu()):
        count = int(mask.sum())
        superpoint_map = inputs["superpoint_maps"][index]
        frame = {"count": count, "superpoint_map": superpoint_map, "up": inputs["up_sources"][index]}
        for name in ("points", "superpoint_ids", "pixel_indices"):
            frame[name] = torch.as_tensor(inputs[name][index][:count]).cpu()
        rotation, offset, scale = (
            torch.as_tensor(inputs[name][index]).cpu() for name in ("point_rotations", "point_offsets", "point_scales")
        )
        # Its inverse is its transpose; rows times it is the inverse of columns by it.
        frame["points"] = frame["points"].float() / scale @ rotation + offset
        if superpoint_map is not None:
            frame["superpoint_map"] = torch.as_tensor(superpoint_map).cpu()
        frames.append(frame)
    return frames


def describe_instances(
    found: Mapping[str, torch.Tensor],
    points: torch.Tensor,
    names: Mapping[int, str],
    segmentation: torch.Tensor | None = None,
) -> list[dict]:
    """`segments_info` of one frame.

    Args:
        found: `masks` bool [K, N], `labels` int64 [K], `scores` float [K], `num_parts` int64 [K].
        points: float32 [N, 3] metres, in the frame of the input.
        names: Name of each label.
        segmentation: int [H, W], rows of `masks`; instances that have no pixel in it are left out.

    Returns:
        For each instance `id` (its row), `label_id`, `label`, `score`, `num_points`, `num_parts` (None where it is
        `NONE`), and `centroid`, `box_3d` and `oriented_box_3d` of `boxes.describe_points`.
    """
    segments = []
    columns = (found[name].tolist() for name in ("labels", "scores", "num_parts"))
    rows = zip(found["masks"], *columns, strict=True)
    visible = range(len(found["masks"]))
    if segmentation is not None:
        # Counting is several times as fast as torch.unique, which sorts.
        visible = set((torch.bincount(segmentation.flatten() - NONE) > 0).nonzero().squeeze(1).add(NONE).tolist())
    for index, (mask, label, score, num_parts) in enumerate(rows):
        if index not in visible:
            continue
        inside = points[mask]
        segments.append(
            {
                "id": index,
                "label_id": label,
                "label": names[label],
                "score": score,
                "num_points": len(inside),
                "num_parts": None if num_parts == NONE else num_parts,
                **describe_points(inside.numpy()),
            }
        )
    return segments


def instances_of_frame(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    frame: Mapping[str, Any],
    names: Mapping[int, str],
    *,
    part_gap: float = 0.0,
    **settings,
) -> dict[str, Any]:
    """What `BiFusionProcessor.post_process_instance_segmentation` gives for one frame.

    Args:
        class_logits: [Q, C + 1], of the frame's queries.
        mask_logits: [Q, N] or more, over its points and padding.
        frame: Of `unpad_frames`.
        names: Name of each label.
        part_gap: Metres by which parts of a mask lie apart that are instances of their own; 0 leaves masks whole.
        settings: For `select_instances`.

    Raises:
        ValueError: `part_gap` is negative.
    """
    if not part_gap >= 0:
        raise ValueError(f"part_gap is {part_gap}; expected metres, at least 0")
    found = select_instances(class_logits, mask_logits[:, : frame["count"]], **settings)
    found = {name: value.cpu() for name, value in found.items()}
    if part_gap > 0:
        # scipy is imported only where it is used.
        from .mask_parts import separate_parts

        limits = {name: settings[name] for name in ("threshold", "min_points", "max_instances")}
        found = separate_parts(found, frame["points"], gap=part_gap, **limits)
    else:
        found["num_parts"] = torch.full_like(found["labels"], NONE)
    segmentation = None
    if frame["superpoint_map"] is not None:
        segmentation = instance_map(
            found["masks"], frame["superpoint_ids"], frame["pixel_indices"], frame["superpoint_map"]
        )
    return {
        "segmentation": segmentation,
        "segments_info": describe_instances(found, frame["points"], names, segmentation),
        "point_masks": found["masks"],
        "scores": found["scores"],
        "labels": found["labels"],
        "queries": found["queries"],
        "num_parts": found["num_parts"],
        "up": frame["up"],
    }


def semantics_of_frame(
    semantic_logits: torch.Tensor, query_superpoints: torch.Tensor, frame: Mapping[str, Any]
) -> dict[str, Any]:
    """What `BiFusionProcessor.post_process_semantic_segmentation` gives for one frame.

    Args:
        semantic_logits: [Q, classes + 1], of the frame's queries.
        query_superpoints: int64 [Q].
        frame: Of `unpad_frames`.

    Raises:
        ValueError: A superpoint has no query.
    """
    num_superpoints = int(frame["superpoint_ids"].max()) + 1
    classes = superpoint_classes(semantic_logits.cpu(), query_superpoints.cpu(), num_superpoints)
    points = classes[frame["superpoint_ids"]]
    segmentation = None
    if frame["superpoint_map"] is not None:
        segmentation = paint_map(points, classes, frame["pixel_indices"], frame["superpoint_map"])
    return {"segmentation": segmentation, "point_labels": points}
