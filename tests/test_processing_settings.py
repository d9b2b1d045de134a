import json

import numpy as np
import pytest
from frame_factory import make_frame
from processing_examples import THING_LABELS, THING_NAMES
from transformers import AutoProcessor, pipeline

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_points": 0}, "num_points is 0"),
        ({"image_size": [240]}, r"image_size is \[240\]"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]; expected three"),
        ({"color_std": [1, 1, 0]}, "color_std is .*expected positive"),
        ({"stuff_classes": [0, 200]}, r"stuff_classes is \[0, 200\]; expected semantic classes"),
        ({"nms_kernel": "soft"}, "nms_kernel is 'soft'"),
        ({"class_to_label": [0, 1]}, "class_to_label is .*expected 200 entries"),
        ({"class_to_label": [3] * 200}, "class_to_label is .*labels below 1"),
    ],
)
def test_malformed_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BiFusionProcessor(**values)


def test_save_and_load_restore_every_value(tmp_path):
    processor = BiFusionProcessor(
        num_points=1234,
        image_size=(240, 320),
        image_mean=(0.1, 0.2, 0.3),
        color_std=(0.4, 0.5, 1 / 3),
        stuff_classes=(0, 1, 5),
        class_to_label=THING_LABELS,
        label_names=THING_NAMES,
        num_superpoints=99,
        sampling_seed=7,
        mask_threshold=0.45,
        max_instances=30,
        nms_kernel="gaussian",
        nms_sigma=1.5,
    )
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    loaded = BiFusionProcessor.from_pretrained(tmp_path)
    names = set(BiFusionProcessor.__init__.__code__.co_varnames[1:17])
    assert names <= set(saved)
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(processor, name) for name in names}
    frame = make_frame()
    first, second = processor.prepare_frame(frame), loaded.prepare_frame(frame)
    for name in ("points", "image", "superpoint_ids", "class_labels"):
        np.testing.assert_array_equal(first[name], second[name])
    changed = BiFusionProcessor.from_pretrained(tmp_path, num_points=55)
    assert changed.num_points == 55
    assert changed.max_instances == 30


def test_from_config():
    agnostic = BiFusionProcessor.from_preset("tiny", image_size=[240, 320])
    assert (agnostic.num_points, agnostic.image_size, agnostic.class_to_label) == (8000, [240, 320], None)
    assert agnostic.label_names == ["object"]
    assert agnostic.min_instance_points == 40
    names = dict(enumerate(THING_NAMES))
    aware = BiFusionProcessor.from_config(BiFusionConfig(id2label=names))
    assert aware.class_to_label == THING_LABELS
    assert aware.label_names == THING_NAMES
    with pytest.raises(ValueError, match="the model has 3 labels and 198 classes.*class_to_label"):
        BiFusionProcessor.from_config(BiFusionConfig(num_labels=3))


@pytest.mark.parametrize("config", [None, "config.json"])
def test_a_folder_without_a_processor_is_refused_by_name(config, tmp_path):
    """As transformers' Trainer leaves it; there a default processor would take its place."""
    BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("tiny")).save_pretrained(tmp_path)
    if config is None:
        (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=rf"{tmp_path} has no processor_config.json.*num_points"):
        BiFusionProcessor.from_pretrained(tmp_path)
    if config is not None:
        for load in (
            load_pretrained,
            AutoProcessor.from_pretrained,
            lambda folder: pipeline("rgbd-instance-segmentation", model=str(folder)),
        ):
            with pytest.raises(OSError, match="has no processor_config.json"):
                load(tmp_path)
