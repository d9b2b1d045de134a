import hashlib
from collections import Counter

import numpy as np
import pytest

from bifusion_hf.labels import (
    INSTANCE_CLASS_NAMES,
    OFFICIAL_INDICES,
    SCANNET200,
    SCANNET200_CLASS_NAMES,
    SPLIT_OF_CLASS,
    STUFF_CLASSES,
    point_instances_from_labels,
    raw_id_to_index,
)


def test_order_and_counts():
    assert SCANNET200_CLASS_NAMES[:5] == ("wall", "floor", "chair", "table", "door")
    assert SCANNET200_CLASS_NAMES[-2:] == ("luggage", "mattress")
    assert len(SCANNET200) == len(set(SCANNET200_CLASS_NAMES)) == len({item.raw_id for item in SCANNET200}) == 200
    assert [SCANNET200_CLASS_NAMES[index] for index in STUFF_CLASSES] == ["wall", "floor"]
    assert len(INSTANCE_CLASS_NAMES) == 198
    assert INSTANCE_CLASS_NAMES[0] == "chair"


def test_official_order_has_rising_raw_ids():
    # The benchmark lists its classes by raw id: an independent check of names against places.
    official = sorted(SCANNET200, key=lambda item: item.official_index)
    assert [item.official_index for item in official] == list(range(200))
    raw_ids = [item.raw_id for item in official]
    assert raw_ids == sorted(raw_ids)
    assert [item.name for item in official[:3]] == ["wall", "chair", "floor"]
    assert [OFFICIAL_INDICES[OFFICIAL_INDICES[index]] for index in range(200)] == list(range(200))


def test_splits_are_the_published_ones():
    assert Counter(item.split for item in SCANNET200) == {"head": 66, "common": 68, "tail": 66}
    assert Counter(SPLIT_OF_CLASS[name] for name in INSTANCE_CLASS_NAMES) == {"head": 64, "common": 68, "tail": 66}
    assert SPLIT_OF_CLASS["mailbox"] == "head"
    assert SPLIT_OF_CLASS["mattress"] == "common"
    assert SPLIT_OF_CLASS["luggage"] == "tail"


def test_table_is_unchanged():
    # Guards the 200 lines against an edit by accident: trained weights depend on the order.
    text = "\n".join(f"{item.raw_id} {item.split} {item.name}" for item in SCANNET200)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "25f2f788b005b8f82ecffb30e515d2c11038324438f3d238e4a6a4dc27425f22"
    )


def test_raw_ids_map_as_in_the_reference(reference):
    with np.load(reference / "sp_gt.npz") as data:
        every, raw_ids, indices = data["map_all_0_1357"], data["map_raw_ids"], data["map_class_index"]
    # The reference writes 200 where a frame here has -1.
    np.testing.assert_array_equal(raw_id_to_index(np.arange(1358)), np.where(every == 200, -1, every))
    np.testing.assert_array_equal(raw_id_to_index(raw_ids), np.where(indices == 200, -1, indices))


def test_raw_ids_of_any_shape_and_size():
    image = np.array([[0, 1, 2], [3, 1191, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(raw_id_to_index(image), [[-1, 0, 2], [1, 199, -1]])
    np.testing.assert_array_equal(raw_id_to_index(np.array([-1, 1 << 40])), [-1, -1])
    assert raw_id_to_index(np.zeros((0,), dtype=np.int64)).shape == (0,)
    with pytest.raises(ValueError, match="raw_ids has dtype float64"):
        raw_id_to_index(np.array([1.0]))


def test_raw_labels_of_an_image():
    instance = np.array([[7, 7, -1], [3, 9, 9]])
    semantic = np.array([[5, 4, 8], [0, -1, 12]])
    point_instance, labels = point_instances_from_labels(instance, semantic)
    # 3 is a wall's id, one point of 9 has no class, and -1 is no instance although its class is a thing's.
    assert point_instance.tolist() == [[0, 0, -1], [-1, -1, 1]]
    assert labels.tolist() == [3, 10]
    nothing, no_labels = point_instances_from_labels(np.full(4, -1), np.full(4, -1))
    assert nothing.tolist() == [-1] * 4
    assert no_labels.shape == (0,)


def test_raw_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"instance has shape \(3,\) and semantic \(2,\)"):
        point_instances_from_labels(np.zeros(3, int), np.zeros(2, int))
    with pytest.raises(ValueError, match="stuff_classes"):
        point_instances_from_labels(np.zeros(3, int), np.zeros(3, int), stuff_classes=(0, 2))
