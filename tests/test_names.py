"""Names of instances: by the semantic head of a class-agnostic network, and by text, where the pipeline shows them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from frame_factory import make_frame
from ply_files import read_comments

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.assets import SAMPLE_CHECKPOINT
from bifusion_hf.labeling import TextLabeler
from bifusion_hf.labels import SCANNET200_CLASS_NAMES
from bifusion_hf.pipeline_bifusion import RGBDInstanceSegmentationPipeline
from bifusion_hf.postprocessing import mask_classes


MEASURED = Path(__file__).parents[1] / "model_cards" / "results" / "semantic_names.json"
LABELS = ["mug", "keyboard", "office chair"]


def slow_mask_classes(masks, logits, queries, superpoint_ids, stuff):
    rows = []
    for mask in masks:
        total = np.zeros(logits.shape[1] - 1)
        for point in np.flatnonzero(mask):
            row = int(np.flatnonzero(queries == superpoint_ids[point])[0])
            values = np.exp(logits[row, :-1])
            values /= values.sum()
            values[stuff] = 0
            total += values
        rows.append(total / mask.sum())
    return np.array(rows)


def test_mask_classes_against_a_slow_form():
    rng = np.random.default_rng(0)
    logits, queries = rng.normal(0, 3, (6, 9)), rng.permutation(6)
    superpoint_ids, masks = rng.integers(0, 6, 40), rng.random((3, 40)) < 0.4
    superpoint_ids[:6] = np.arange(6)
    found = mask_classes(
        torch.from_numpy(masks),
        torch.from_numpy(logits),
        torch.from_numpy(queries),
        torch.from_numpy(superpoint_ids),
        [0, 1],
    ).numpy()
    np.testing.assert_allclose(found, slow_mask_classes(masks, logits, queries, superpoint_ids, [0, 1]), atol=1e-6)
    # What most points take for a wall is nothing for sure.
    wall = np.full((6, 9), -5.0)
    wall[:, 0] = 5
    found = mask_classes(
        torch.from_numpy(masks), torch.from_numpy(wall), torch.arange(6), torch.from_numpy(superpoint_ids), [0, 1]
    )
    assert float(found.max()) < 0.01
    with pytest.raises(ValueError, match="1 of 6 superpoints have no query"):
        mask_classes(
            torch.from_numpy(masks),
            torch.from_numpy(logits[:5]),
            torch.arange(5),
            torch.from_numpy(superpoint_ids),
            [0, 1],
        )


@pytest.fixture(scope="module")
def frame():
    return make_frame(96, 128)


def make_segmenter(**overrides):
    torch.manual_seed(0)
    point_config = {"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8}
    config = BiFusionConfig.from_preset("tiny", point_config=point_config, hidden_size=8, **overrides)
    model = BiFusionForInstanceSegmentation(config)
    processor = BiFusionProcessor.from_preset("tiny", config, num_points=900, num_superpoints=40)
    return RGBDInstanceSegmentationPipeline(
        model=model, processor=processor, device=torch.device("cpu"), threshold=0.0, min_points=0
    )


@pytest.fixture(scope="module")
def segmenter():
    return make_segmenter()


def test_names_are_in_all_that_a_result_writes(segmenter, frame, tmp_path):
    result = segmenter(frame, name_threshold=0.0)
    segments = result["segments_info"]
    assert segments and {segment["label"] for segment in segments} == {"object"}
    for segment in segments:
        assert segment["name"] == segment["semantic_label"] in SCANNET200_CLASS_NAMES[2:]
    paths = result.save(tmp_path)
    content = json.loads(paths["json"].read_text())
    assert [item["name"] for item in content["segments"]] == [segment["name"] for segment in segments]
    comments = read_comments(paths["ply"])
    assert comments == [f"instance {segment['id']} {segment['name']}" for segment in segments]
    assert segments[0]["name"] in repr(result) and segments[0]["name"] in result._repr_html_()
    assert result.to_coco()["annotations"][0]["name"] == segments[0]["name"]
    unnamed = segmenter(frame, name_threshold=1.0)
    assert {segment["name"] for segment in unnamed["segments_info"]} == {"object"}
    # A picture of the same masks, with other words on it.
    assert np.any(np.asarray(result.plot()) != np.asarray(unnamed.plot()))


def test_labels_that_tell_classes_apart_stay(frame):
    result = make_segmenter(num_labels=198)(frame, name_threshold=0.0)
    assert result["segments_info"]
    assert all(segment["name"] == segment["label"] for segment in result["segments_info"])
    assert any(segment["semantic_label"] != segment["label"] for segment in result["segments_info"])


def test_the_pipeline_names_by_text(segmenter, frame, clip_folder, siglip_folder):
    found = segmenter(frame, candidate_labels=LABELS, labeler=clip_folder, top_k=2)
    labeler = TextLabeler(clip_folder)
    masks = np.array([found["segmentation"] == segment["id"] for segment in found["segments_info"]])
    expected = labeler.label(labeler.instance_features(frame.image, masks), LABELS, top_k=2)
    for segment, one in zip(found["segments_info"], expected, strict=True):
        assert segment["name"] == segment["text_label"] == one["label"]
        assert segment["text_score"] == pytest.approx(one["score"], abs=1e-5) and len(segment["text_labels"]) == 2
        assert segment["label"] == "object"
    assert segmenter.get_labeler(clip_folder) is segmenter.get_labeler(clip_folder)
    dense = TextLabeler(siglip_folder, mode="dense")
    frames = segmenter([frame, frame], candidate_labels=LABELS, labeler=dense, batch_size=2)
    first, second = (item["segments_info"] for item in frames)
    names = [[segment["name"] for segment in segments] for segments in (first, second)]
    assert names[0] == names[1] and set(names[0]) <= {*LABELS, "unknown"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidate_labels": LABELS}, "candidate_labels is given without labeler"),
        ({"labeler": "clip"}, "labeler is given without candidate_labels"),
        ({"candidate_labels": [], "labeler": "clip"}, "candidate_labels has no label"),
        ({"candidate_labels": ["mug", ""], "labeler": "clip"}, "empty label"),
        ({"candidate_labels": [str(i) for i in range(10_000)], "labeler": "clip"}, "has 10000 labels"),
        ({"top_k": 3}, "top_k is given without"),
        ({"name_threshold": 1.5}, "name_threshold"),
    ],
)
def test_bad_arguments_are_told_before_the_network_runs(segmenter, frame, monkeypatch, arguments, message):
    monkeypatch.setattr(segmenter, "forward", lambda *_, **__: pytest.fail("the network ran"))
    with pytest.raises(ValueError, match=message):
        segmenter(frame, **arguments)


def test_the_sample_checkpoint_has_the_measured_threshold():
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert BiFusionProcessor.from_pretrained(SAMPLE_CHECKPOINT).name_threshold == measured["name_threshold"]
    for values in measured["data"].values():
        shown = values["above_the_threshold"]
        assert shown["right"] > 0.5 and shown["right"] > values["all"]["share"]
