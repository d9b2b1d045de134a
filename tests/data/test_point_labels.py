import numpy as np
import pytest
from frame_factory import BED, CHAIR, TABLE, make_frame
from processing_examples import THING_LABELS, THING_NAMES

from bifusion_hf.data.point_labels import labels_of_points
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_point_labels_follow_the_reference_rule(reference, case):
    data = np.load(reference / "sp_gt.npz")
    semantic = data[f"{case}_in_semantic"].astype(int)
    semantic = np.where(semantic == 200, -1, semantic)
    instance = data[f"{case}_in_instance"].astype(int)
    aware = BiFusionProcessor(class_to_label=THING_LABELS, label_names=THING_NAMES)
    labels = aware.point_labels(instance, semantic)
    np.testing.assert_array_equal(labels["instance"], data[f"{case}_correct_point_instance"])
    np.testing.assert_array_equal(labels["class_labels"], data[f"{case}_correct_labels"])
    np.testing.assert_array_equal(labels["semantic"], np.where(semantic >= 0, semantic, -100))
    agnostic = BiFusionProcessor().point_labels(instance, semantic)
    np.testing.assert_array_equal(agnostic["instance"], labels["instance"])
    assert agnostic["class_labels"].tolist() == [0] * len(labels["class_labels"])


def test_labels_of_a_chosen_set_of_classes():
    mapping = [-1] * 200
    mapping[CHAIR], mapping[BED] = 1, 0
    processor = BiFusionProcessor(num_points=5000, class_to_label=mapping, label_names=["bed", "chair"])
    frame = make_frame()
    sample = processor.prepare_frame(frame)
    truth = frame.semantic.flat[sample["pixel_indices"]]
    assert sorted(sample["class_labels"].tolist()) == [0, 1]
    for index, label in enumerate(sample["class_labels"]):
        np.testing.assert_array_equal(sample["instance"] == index, truth == {0: BED, 1: CHAIR}[label])
    assert (sample["instance"][truth == TABLE] == -1).all()
    # Semantic supervision still has every class.
    assert set(np.unique(sample["semantic"])) == {-100, 0, 1, CHAIR, TABLE, BED}


def test_instances_without_classes_are_kept_class_agnostically():
    frame = make_frame(semantic=None)
    sample = BiFusionProcessor(num_points=2000).prepare_frame(frame)
    assert "semantic" not in sample
    assert sample["class_labels"].tolist() == [0] * 4
    aware = BiFusionProcessor(class_to_label=THING_LABELS, label_names=THING_NAMES)
    with pytest.raises(ValueError, match="synthetic 0: semantic is missing"):
        aware.prepare_frame(frame)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_labels_are_of_64_bits_whatever_those_of_the_frame_are(dtype):
    given = np.array([1, 0, 4, 4], dtype=dtype)
    labels = BiFusionProcessor().point_labels(given, (given + 1).astype(dtype))
    # Class 1 is the floor.
    expected = {"semantic": [2, 1, 5, 5], "instance": [0, -1, 1, 1], "class_labels": [0, 0]}
    assert {name: (value.dtype, value.tolist()) for name, value in labels.items()} == {
        name: (np.int64, value) for name, value in expected.items()
    }


def test_the_labels_of_classes_may_come_in_any_kind_of_number():
    instance, semantic = np.array([5, 5, -1, 2, 0]), np.array([3, 3, 2, 2, 1])
    labels = labels_of_points(instance, semantic, 4, [0, 1], np.array([-1, -1, 6, 7], np.int8))
    assert labels["class_labels"].dtype == np.int64 and labels["class_labels"].tolist() == [6, 7]
    assert labels["instance"].tolist() == [1, 1, -1, 0, -1]
    with pytest.raises(ValueError, match="frame: semantic has class 3; expected classes below 3"):
        labels_of_points(instance, semantic, 3, [0, 1], None)
    # A frame may have no point left.
    empty = labels_of_points(instance[:0], semantic[:0], 4, [0, 1], None)
    assert {name: len(value) for name, value in empty.items()} == {"semantic": 0, "instance": 0, "class_labels": 0}


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match="synthetic 0: semantic has class 10; expected classes below 10"):
        BiFusionProcessor(num_semantic_labels=10).prepare_frame(make_frame())
