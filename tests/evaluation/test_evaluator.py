import json
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from perfect_network import PerfectNetwork, readable_frame, readable_processor
from processes import join, run_processes
from torch.utils.data import get_worker_info

from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.evaluation import evaluate_model, headline, save_results
from bifusion_hf.evaluation.evaluator import (
    EvaluationProtocol,
    FrameEvaluator,
    FramePrediction,
    instance_ids_of_masks,
)


def evaluate(processor, frames, confused=(), **options):
    return evaluate_model(PerfectNetwork(processor, confused), processor, FrameDataset(frames, processor), **options)


@pytest.fixture(scope="module")
def frames():
    return [readable_frame(seed) for seed in range(5)]


def test_perfect_network_scores_one_in_every_part(frames):
    result = evaluate(readable_processor(class_aware=True), frames)
    numbers = headline(result)
    assert len(numbers) == 7
    assert {name: round(value, 6) for name, value in numbers.items()} == dict.fromkeys(numbers, 1.0)
    # Wall and unlabelled points are void; the floor's instance id does not make it an instance.
    assert result["class_agnostic"]["num_instances"] == 15
    assert {
        name: row["num_instances"] for name, row in result["class_aware"]["classes"].items() if row["ap"] == 1
    } == {
        "chair": 5,
        "table": 5,
        "bed": 5,
    }
    assert result["semantic"]["classes"]["floor"]["iou"] == 1.0
    assert result["protocol"] == {
        "num_frames": 5,
        "min_points": 15,
        "iou_thresholds": [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.25],
        "points_per_frame": 3000,
        "sampling_seed": 0,
        "score_threshold": 0.0,
        "mask_threshold": 0.4,
        "max_instances": 100,
        "part_gap": 0.05,
    }


def test_wrong_classes_cost_the_class_aware_number_only(frames):
    result = evaluate(readable_processor(class_aware=True), frames, confused=[3, 10])
    assert result["class_agnostic"]["all_ap"] == pytest.approx(1.0)
    classes = result["class_aware"]["classes"]
    assert classes["table"]["ap"] == classes["bed"]["ap"] == 0.0
    assert classes["chair"]["ap"] < 1.0
    assert headline(result)["all_ap"] == result["class_aware"]["all_ap"] < 0.5
    assert result["semantic"]["classes"]["table"]["iou"] == 0.0


def test_class_agnostic_network_and_option(frames):
    for class_aware, options in ((False, {}), (True, {"class_agnostic": True})):
        result = evaluate(readable_processor(class_aware), frames, **options)
        assert "class_aware" not in result
        assert headline(result)["all_ap_50%"] == pytest.approx(1.0)


class MadeByWorkers(FrameDataset):
    """Gives frames to worker processes alone."""

    def __getitem__(self, index):
        assert get_worker_info() is not None
        return super().__getitem__(index)


def test_result_does_not_depend_on_batches_or_workers(frames):
    processor = readable_processor(class_aware=True)
    network, sizes = PerfectNetwork(processor, [3]), []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["points"])), with_kwargs=True
    )
    expected = json.dumps(evaluate(processor, frames, confused=[3], batch_size=1))
    assert json.dumps(evaluate_model(network, processor, FrameDataset(frames, processor), batch_size=3)) == expected
    assert sizes == [3, 2]
    frames = MadeByWorkers(frames, processor)
    assert json.dumps(evaluate_model(network, processor, frames, batch_size=2, num_workers=1)) == expected


def test_frames_of_different_length_are_padded_away():
    frames = [readable_frame(0), readable_frame(1, depth=readable_frame(1).depth * (np.arange(80) > 30))]
    result = evaluate(readable_processor(class_aware=True, num_points=4000), frames, batch_size=2)
    assert headline(result)["all_ap"] == pytest.approx(1.0)


def test_limit_and_include_95(frames, caplog):
    seen = []
    processor = readable_processor(class_aware=False, sampling_seed=3)
    result = evaluate(processor, frames, limit=2, include_95=True, on_prediction=seen.append)
    assert result["protocol"]["num_frames"] == 2 and result["protocol"]["sampling_seed"] == 3
    assert caplog.records == [], "frames beyond the limit are not missing"
    assert [prediction.frame_id for prediction in seen] == ["synthetic 0", "synthetic 1"]
    assert headline(result)["all_ap_50:95"] == pytest.approx(1.0)
    assert result["protocol"]["iou_thresholds"][-1] == 0.95
    assert evaluate(processor, frames[:1], limit=9)["protocol"]["num_frames"] == 1
    nothing = evaluate(processor, frames, limit=0)
    assert nothing["protocol"]["num_frames"] == 0 and np.isnan(nothing["class_agnostic"]["all_ap"])


def test_instances_of_low_scores_are_measured_too(frames):
    """The curve goes down to the lowest score; the processor's threshold is for showing."""

    class Unsure(PerfectNetwork):
        def forward(self, **inputs):
            outputs = super().forward(**inputs)
            outputs.class_queries_logits = outputs.class_queries_logits / 200
            return outputs

    processor, seen = readable_processor(class_aware=False), []
    dataset = FrameDataset(frames[:1], processor)
    result = evaluate_model(Unsure(processor), processor, dataset, on_prediction=seen.append)
    assert result["class_agnostic"]["all_ap_50%"] > 0 and seen[0].scores.max() < 0.8 and seen[0].scores.min() < 0.3


def test_a_bar_is_shown_where_it_is_asked_for(frames, capsys):
    processor = readable_processor(class_aware=False)
    shown = []
    for options in ({}, {"progress": True}):
        evaluate(processor, frames[:1], **options)
        shown.append(capsys.readouterr().err)
    assert shown[0] == "" and "1/1" in shown[1]


def test_a_protocol_follows_from_its_processor():
    def protocol(min_points, names=("a", "b"), semantic_names=None, **options):
        processor = SimpleNamespace(label_names=names, num_semantic_labels=2, min_instance_points=min_points)
        return EvaluationProtocol.of_model(processor, semantic_names, **options)

    assert [protocol(points).min_points for points in (0, 0.2, 1, 1.2, 15)] == [1, 1, 1, 2, 15]
    plain = protocol(1)
    assert plain.class_names == ("a", "b") and plain.semantic_class_names == ("class 0", "class 1")
    assert not plain.include_95 and plain.groups == {}
    assert protocol(1, semantic_names={1: "floor"}).semantic_class_names == ("class 0", "floor")
    assert protocol(1, class_agnostic=True).class_names is None and protocol(1, names=("a",)).class_names is None
    assert len(FrameEvaluator(EvaluationProtocol(None, None, 1)).compute()["protocol"]["iou_thresholds"]) == 10


def test_what_is_void_is_void_to_groups_too():
    groups = {"first": ("a",), "second": ("b",)}
    evaluator = FrameEvaluator(EvaluationProtocol(("a", "b"), None, 5, include_95=True, groups=groups))
    nothing = evaluator.compute()
    assert nothing["protocol"]["num_frames"] == 0 and np.isnan(nothing["class_agnostic"]["all_ap"])
    assert np.isnan(nothing["groups"]["first"]["class_agnostic"]["ap"]) and "class_aware" not in nothing
    ids = np.repeat([-1, 0, 1, 2], 10)
    masks = ids == np.array([[0], [1], [2]])
    prediction = FramePrediction("frame 7", np.arange(40), masks, np.array([0.9, 0.5, 0.4]), np.array([0, 0, 1]))
    # The best prediction lies on an instance that is void.
    evaluator.update(prediction, ids, np.array([-1, 0, 1]), None)
    result = evaluator.compute()
    for group in groups:
        for part in ("class_agnostic", "class_aware"):
            found = result["groups"][group][part]
            assert found["ap"] == found["ap50:95"] == found["num_instances"] == 1.0
    assert str(result["protocol"]["iou_thresholds"][:3]) == "[0.5, 0.55, 0.6]"
    with pytest.raises(ValueError, match=r"frame 7: gt_instance_ids has shape \(39,\)"):
        evaluator.update(prediction, ids[1:], np.array([-1, 0, 1]), None)


def test_without_semantic_labels_there_is_no_semantic_part(frames):
    frame = readable_frame(0, semantic=None)
    result = evaluate(readable_processor(class_aware=False), [frame])
    assert "semantic" not in result
    # Without classes the floor's id counts as an instance.
    assert result["class_agnostic"]["num_instances"] == 4


def test_refusals(frames):
    processor = readable_processor(class_aware=False)
    network = PerfectNetwork(processor)
    with pytest.raises(ValueError, match="model is in training mode"):
        evaluate_model(network.train(), processor, FrameDataset(frames, processor))
    unlabelled = [readable_frame(0, instance=None)]
    with pytest.raises(ValueError, match="synthetic 0: no instance labels"):
        evaluate(processor, unlabelled)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_broken_frame_alone_in_its_batch_is_left_out_and_counted(frames, batch_size, caplog):
    processor = readable_processor(class_aware=False)
    broken = {"frame_id": "synthetic 9"}
    dataset = FrameDataset([*frames[:2], broken], processor, skip_broken=True)
    result = evaluate_model(PerfectNetwork(processor), processor, dataset, batch_size=batch_size)
    assert "frame 'synthetic 9') is broken" in caplog.text and "1 of 3 frames are broken and left out" in caplog.text
    protocol = result["protocol"]
    assert (protocol.pop("skipped_frames"), protocol["num_frames"]) == (1, 2)
    assert json.dumps(result) == json.dumps(evaluate(processor, frames[:2]))
    with pytest.raises(ValueError, match="all 1 frames are broken"):
        evaluate_model(PerfectNetwork(processor), processor, FrameDataset([broken], processor, skip_broken=True))


def test_instance_ids_of_masks():
    masks = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], dtype=bool)
    np.testing.assert_array_equal(instance_ids_of_masks(masks), [0, -1, 1, 1])
    np.testing.assert_array_equal(instance_ids_of_masks(np.zeros((0, 2), bool)), [-1, -1])


def evaluate_in_two(folder):
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    processor = readable_processor(class_aware=True)
    dataset = FrameDataset([readable_frame(seed) for seed in range(5)], processor)
    network, seen = PerfectNetwork(processor, confused=[3]), []
    result = evaluate_model(network, processor, dataset, accelerator=accelerator, on_prediction=seen.append)
    assert len(seen) == (3 if accelerator.is_main_process else 2)
    save_results(result, folder / f"result.{accelerator.process_index}")


def test_two_processes_give_the_result_of_one(frames, tmp_path):
    join(run_processes(evaluate_in_two, 2, tmp_path))
    save_results(evaluate(readable_processor(class_aware=True), frames, confused=[3]), tmp_path / "expected")
    for process in range(2):
        assert (tmp_path / f"result.{process}").read_text() == (tmp_path / "expected").read_text()


def test_groups_are_measured_apart_and_frames_one_by_one(frames):
    groups = {"seats": ("chair", "bed"), "rest": ("table",), "absent": ("toilet",)}
    single = []
    result = evaluate(
        readable_processor(class_aware=True),
        frames,
        confused=[3, 10],
        groups=groups,
        on_frame=lambda prediction, evaluator: single.append((prediction.frame_id, evaluator.compute())),
    )
    found = result["groups"]
    # A wrong class does not matter without classes; what is not of the group is void, and no false positive.
    assert found["seats"]["class_agnostic"]["ap"] == found["rest"]["class_agnostic"]["ap"] == pytest.approx(1.0)
    assert [found[name]["class_agnostic"]["num_instances"] for name in groups] == [10, 5, 0]
    classes = result["class_aware"]["classes"]
    assert found["seats"]["class_aware"]["ap50%"] == pytest.approx(
        (classes["chair"]["ap50%"] + classes["bed"]["ap50%"]) / 2
    )
    assert found["seats"]["class_aware"]["num_instances"] == 10
    assert found["rest"]["class_aware"]["ap50%"] == 0.0 and np.isnan(found["absent"]["class_aware"]["ap50%"])
    assert [name for name, _ in single] == [frame.frame_id for frame in frames]
    for frame, (_, alone) in zip(frames, single, strict=True):
        expected = evaluate(readable_processor(class_aware=True), [frame], confused=[3, 10], groups=groups)
        for part in ("class_aware", "class_agnostic", "semantic", "groups"):
            np.testing.assert_equal(alone[part], expected[part])
    with pytest.raises(ValueError, match=r"groups name \['sofa'\]; expected classes of the instance labels"):
        evaluate(readable_processor(class_aware=True), frames, groups={"seats": ("sofa",)})
