from types import SimpleNamespace

import numpy as np
import pytest
import torch
from frame_factory import make_frame
from processing_examples import arguments, outputs_from_masks

from bifusion_hf.boxes import bounding_box
from bifusion_hf.processing_bifusion import BiFusionProcessor


def test_true_masks_come_back_as_segments():
    processor = BiFusionProcessor(num_points=4000, num_superpoints=80)
    frames = [make_frame(seed=0), make_frame(seed=1, with_pose=False)]
    # Another number of points, so that the batch is padded.
    frames[1].depth[:, :130] = 0
    batch = processor(
        images=[frame.image for frame in frames],
        depth=[frame.depth for frame in frames],
        intrinsics=frames[0].intrinsics,
        poses=[frame.camera_to_world for frame in frames],
        instance_masks=[frame.instance for frame in frames],
        semantic_masks=[frame.semantic for frame in frames],
    )
    counts = batch["point_mask"].sum(dim=1).tolist()
    assert counts[0] == 4000 > counts[1]
    masks = [rows[:, :count] for rows, count in zip(batch["mask_labels"], counts, strict=True)]
    classes = [torch.tensor([[2.0 + index, 0.0] for index in range(len(rows))]) for rows in masks]
    outputs = outputs_from_masks(masks, classes, 4000)
    results = processor.post_process_instance_segmentation(outputs, batch, threshold=0.1)
    for index, (frame, result) in enumerate(zip(frames, results, strict=True)):
        expected = masks[index].flip(0)
        torch.testing.assert_close(result["point_masks"], expected)
        assert (result["scores"].diff() <= 0).all()
        assert result["labels"].tolist() == [0] * len(expected)
        assert result["segmentation"].shape == (120, 160)
        positions = frame.unproject().reshape(-1, 3)[batch["pixel_indices"][index][: counts[index]]]
        for segment, mask in zip(result["segments_info"], expected, strict=True):
            assert (segment["label_id"], segment["label"]) == (0, "object")
            assert segment["num_points"] == int(mask.sum())
            inside = positions[mask.numpy()]
            np.testing.assert_allclose(segment["box_3d"], bounding_box(inside), atol=1e-4)
            pixels = result["segmentation"].numpy() == segment["id"]
            truth = frame.instance == frame.instance.flat[batch["pixel_indices"][index][: counts[index]][mask]][0]
            overlap = (pixels & truth & (frame.depth > 0)).sum() / ((pixels | truth) & (frame.depth > 0)).sum()
            assert overlap > 0.9


def test_segments_info_lists_what_the_segmentation_shows():
    processor = BiFusionProcessor(num_points=4000, num_superpoints=40)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    masks = batch["mask_labels"][0]
    # The second instance is a part of the first, of which the network is surer.
    covered = torch.stack([masks[0] | masks[1], masks[1], masks[2]])
    outputs = outputs_from_masks([covered], [torch.tensor([[9.0, 0], [2.0, 0], [6.0, 0]])], 4000)
    # Both instances of the first mask stay one: what is asked here is what a covered instance comes to.
    options = {"threshold": 0.1, "min_points": 0, "part_gap": 0.0}
    result = processor.post_process_instance_segmentation(outputs, batch, **options)[0]
    assert len(result["scores"]) == 3 and result["num_parts"].tolist() == [-1] * 3
    hidden = [index for index, mask in enumerate(result["point_masks"]) if torch.equal(mask, masks[1])]
    shown = result["segmentation"].unique().tolist()
    assert len(hidden) == 1 and [segment["id"] for segment in result["segments_info"]] == shown[1:]
    assert not set(hidden) & set(shown) and len(shown) == 3
    for segment in result["segments_info"]:
        assert segment["score"] == pytest.approx(float(result["scores"][segment["id"]]))
        assert segment["num_points"] == int(result["point_masks"][segment["id"]].sum())
        assert segment["num_parts"] is None


def test_class_aware_labels_and_thresholds():
    processor = BiFusionProcessor(num_points=4000, num_superpoints=40)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    masks = batch["mask_labels"][0]
    classes = torch.tensor([[0.0, 5, 0, 0], [4.0, 0, 0, 0], [0, 0, 0.5, 0]])
    outputs = outputs_from_masks([masks], [classes], 4000)
    names = {0: "chair", 1: "table", 2: "bed"}
    result = processor.post_process_instance_segmentation(outputs, batch, label_names=names)[0]
    assert [segment["label"] for segment in result["segments_info"]] == ["table", "chair"]
    assert result["labels"].tolist() == [1, 0]
    many = processor.post_process_instance_segmentation(outputs, batch, threshold=0.0, label_names=names)[0]
    assert len(many["scores"]) > 3
    few = processor.post_process_instance_segmentation(
        outputs, batch, threshold=0.0, label_names=names, max_instances=1, min_points=0
    )[0]
    assert len(few["scores"]) == 1
    large = processor.post_process_instance_segmentation(outputs, batch, min_points=4000, label_names=names)[0]
    assert large["segments_info"] == []
    assert (large["segmentation"] == -1).all()
    with pytest.raises(ValueError, match="label_names has 1 names.*3 labels"):
        processor.post_process_instance_segmentation(outputs, batch)


@pytest.mark.parametrize("name", ["threshold", "mask_threshold", "name_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_threshold_that_is_no_probability_is_refused(name, value):
    processor = BiFusionProcessor(num_points=500, num_superpoints=5)
    batch = processor(**arguments(make_frame()), superpoints=np.zeros((120, 160), int))
    outputs = outputs_from_masks([torch.ones(1, 500, dtype=torch.bool)], [torch.tensor([[9.0, 0]])], 500)
    with pytest.raises(ValueError, match=rf"^{name} is {value}; expected a probability"):
        processor.post_process_instance_segmentation(outputs, batch, **{name: value})


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_a_semantic_class_is_the_name_where_there_is_one_label(num_labels):
    frame = make_frame()
    labels = [f"label {index}" for index in range(num_labels)]
    processor = BiFusionProcessor(num_points=4000, label_names=labels)
    # One superpoint a box, and one for the rest.
    superpoints = np.where(np.isin(frame.semantic, (0, 1, -1)), 0, frame.instance)
    batch = processor(**arguments(frame), superpoints=superpoints, instance_masks=frame.instance)
    ids = batch["superpoint_ids"][0]
    masks = torch.stack([ids == number for number in range(4)])
    outputs = outputs_from_masks(
        [masks], [torch.tensor([[5.0 - index, *[0] * num_labels] for index in range(4)])], 4000
    )
    names = {2: "chair", 3: "table", 4: "bed"}
    alone = processor.post_process_instance_segmentation(outputs, batch, semantic_names=names, part_gap=0)[0]
    assert all("name" not in segment for segment in alone["segments_info"])
    # Queries come in another order than superpoints, and are as sure as 0.9 of one class each.
    order = torch.tensor([2, 0, 3, 1])
    outputs.query_superpoints = order[None]
    outputs.semantic_queries_logits = torch.zeros(1, 4, 201)
    for query, superpoint in enumerate(order.tolist()):
        outputs.semantic_queries_logits[0, query, (2, 3, 4, 3)[superpoint]] = np.log(199 * 0.9 / 0.1)
    plain = processor.post_process_instance_segmentation(outputs, batch, part_gap=0)[0]
    assert all("name" not in segment for segment in plain["segments_info"])
    for threshold, is_sure in ((None, True), (0.89, True), (0.91, False)):
        (found,) = processor.post_process_instance_segmentation(
            outputs, batch, semantic_names=names, part_gap=0, name_threshold=threshold
        )
        assert [segment["label"] for segment in found["segments_info"]] == ["label 0"] * 4
        classes = [segment["semantic_label"] for segment in found["segments_info"]]
        assert classes == ["chair", "table", "bed", "table"]
        assert [segment["semantic_probability"] for segment in found["segments_info"]] == pytest.approx([0.9] * 4)
        called = [segment["name"] for segment in found["segments_info"]]
        assert called == (classes if num_labels == 1 and is_sure else ["label 0"] * 4)


def test_semantic_segmentation_follows_the_superpoints():
    processor = BiFusionProcessor(num_points=3000, num_superpoints=50)
    frames = [make_frame(seed=0), make_frame(seed=1)]
    batch = processor([f.image for f in frames], [f.depth for f in frames], frames[0].intrinsics)
    counts = (batch["superpoint_ids"].max(dim=1).values + 1).tolist()
    generator = torch.Generator().manual_seed(0)
    order = [torch.randperm(count, generator=generator) for count in counts]
    outputs = SimpleNamespace(
        semantic_queries_logits=torch.randn(2, max(counts) + 3, 201, generator=generator),
        query_superpoints=torch.nn.functional.pad(
            torch.nn.utils.rnn.pad_sequence(order, batch_first=True, padding_value=-1), (0, 3), value=-1
        ),
    )
    outputs.semantic_queries_logits[..., 200] = 50.0
    outputs.query_mask = outputs.query_superpoints >= 0
    for index, result in enumerate(processor.post_process_semantic_segmentation(outputs, batch)):
        query_of = torch.argsort(order[index])
        classes = outputs.semantic_queries_logits[index, :, :200].argmax(dim=1)[query_of]
        torch.testing.assert_close(result["point_labels"], classes[batch["superpoint_ids"][index]])
        of_pixels = batch["superpoint_maps"][index]
        expected = torch.where(of_pixels >= 0, classes[of_pixels.clamp(min=0).long()], -1)
        torch.testing.assert_close(result["segmentation"].long(), expected)


def test_numpy_batches_can_be_post_processed():
    processor = BiFusionProcessor(num_points=2000, num_superpoints=30)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    arrays = processor(
        **arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic, return_tensors="np"
    )
    outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[3.0, 0]] * 3)], 2000)
    first = processor.post_process_instance_segmentation(outputs, batch)[0]
    second = processor.post_process_instance_segmentation(outputs, arrays)[0]
    assert first["segments_info"] == second["segments_info"]
    torch.testing.assert_close(first["segmentation"], second["segmentation"])


@pytest.mark.gpu
def test_results_of_a_cuda_model_come_back_to_the_cpu():
    processor = BiFusionProcessor(num_points=2000, num_superpoints=30)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[3.0, 0]] * 3)], 2000)
    expected = processor.post_process_instance_segmentation(outputs, batch)[0]
    moved = SimpleNamespace(**{name: value.cuda() for name, value in vars(outputs).items()})
    found = processor.post_process_instance_segmentation(moved, batch.to("cuda"))[0]
    for name in ("segmentation", "point_masks", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name])


def test_post_processing_keeps_no_gradient():
    processor = BiFusionProcessor(num_points=2000, num_superpoints=30)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[3.0, 0]] * 3)], 2000)
    outputs.class_queries_logits.requires_grad_()
    assert not processor.post_process_instance_segmentation(outputs, batch)[0]["scores"].requires_grad
