"""The measurements of names, on networks and models that are small."""

import json

import datasets
import numpy as np
import pytest
import torch
from frame_factory import make_frame

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.frames import frame_features, frame_to_row
from bifusion_hf.labeling import TextLabeler
from scripts.experiments.names import speed
from scripts.experiments.names.__main__ import main
from scripts.experiments.names.matching import Named, at_threshold, choose_threshold, found_instances, shares
from scripts.experiments.names.small_clip import batches, read_crops


def test_found_instances_are_those_above_half_of_the_union():
    frame = make_frame(60, 80, holes=False)
    segmentation = np.full((60, 80), -1)
    # The chair whole; a third of the table; the bed with as much again of the floor.
    segmentation[frame.instance == 3] = 0
    rows, columns = np.nonzero(frame.instance == 10)
    segmentation[rows[columns < columns.min() + 5], columns[columns < columns.min() + 5]] = 1
    segmentation[frame.instance == 17] = 2
    segmentation[50:, 5:75] = 2
    result = {"segmentation": segmentation, "segments_info": [{"id": index} for index in range(3)]}
    assert list(found_instances(frame, result)) == [({"id": 0}, "chair")]


def test_shares_and_threshold():
    named = [
        Named("chair", "chair", 0.9),
        Named("chair", "bed", 0.35),
        Named("cup", "cup", 0.4),
        Named("cup", "bed", 0),
    ]
    found = shares(named)
    assert found["all"] == {"found": 4, "right": 2, "share": 0.5}
    assert found["head"]["share"] == found["tail"]["share"] == 0.5 and found["common"]["share"] is None
    assert at_threshold(named, 0.36) == {"threshold": 0.36, "shown": 0.5, "right": 1.0}
    assert at_threshold(named, 0.95)["right"] is None
    assert choose_threshold(named) == 0.4
    with pytest.raises(ValueError, match="no probability has 75% of the 1 names"):
        choose_threshold(named[1:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("names")
    (path / "rooms" / "data").mkdir(parents=True)
    frames = [make_frame(96, 128, seed=seed, frame_id=f"room-{seed}") for seed in range(3)]
    rows = datasets.Dataset.from_list([frame_to_row(frame) for frame in frames], features=frame_features())
    for split in ("train", "val"):
        rows.to_parquet(path / "rooms" / "data" / f"{split}-00000-of-00001.parquet")
    torch.manual_seed(0)
    config = BiFusionConfig.from_preset("tiny", point_config={"stem_channels": 8, "planes": [8] * 8}, hidden_size=8)
    BiFusionForInstanceSegmentation(config).save_pretrained(path / "checkpoint")
    BiFusionProcessor.from_config(config, num_points=400).save_pretrained(path / "checkpoint")
    return path


def test_crops_and_batches(folder):
    crops, classes = read_crops(str(folder / "rooms"), "train")
    assert len(crops) == 9 and crops.shape[1:] == (3, 48, 48, 3) and set(classes.tolist()) == {2, 3, 10}
    pixels, targets = next(batches(crops, np.searchsorted([2, 3, 10], classes), 8, 1, 0))
    assert pixels.shape == (8, 3, 48, 48) and float(pixels.abs().max()) <= 1 and int(targets.max()) <= 2


def test_a_small_clip_is_trained_saved_and_measured(folder, tmp_path, monkeypatch):
    rooms = str(folder / "rooms")
    # Once by each number of threads.
    monkeypatch.setattr(speed.seconds, "__defaults__", ((1, 2), 1))
    main(["train_clip", "--data", rooms, "--output", str(tmp_path / "clip"), "--updates", "2"])
    labeler = TextLabeler(str(tmp_path / "clip"))
    # Every class's caption is another one.
    texts = labeler.text_features(["chair", "table", "bed", "office chair"])
    assert np.abs(texts @ texts.T - np.eye(4))[np.triu_indices(4, 1)].max() < 0.9999
    main(
        ["measure_clip", "--labeler", str(tmp_path / "clip"), "--checkpoint", str(folder / "checkpoint")]
        + [
            "--data",
            rooms,
            "--scenes",
            rooms,
            "--limit",
            "1",
            "--scene_limit",
            "1",
            "--output",
            str(tmp_path / "clip.json"),
        ]
    )
    content = json.loads((tmp_path / "clip.json").read_text())
    assert content["protocol"]["training"]["instances"] == 9
    assert {"semantic head", "crops", "dense", "chance"} <= set(content["frames"])
    assert set(content["scenes"]) == {"semantic head", "1 view", "3 views"}
    assert all(value > 0 for times in content["seconds"].values() for value in times.values())


def test_the_threshold_is_written_into_the_checkpoint(folder, tmp_path, monkeypatch):
    named = [Named("chair", "chair", 0.9), Named("chair", "bed", 0.5)]
    monkeypatch.setattr("scripts.experiments.names.matching.frames_named", lambda segmenter, frames: (named, 4))
    words = ["semantic", "--checkpoint", str(folder / "checkpoint"), "--data", str(folder / "rooms")]
    main([*words, "--output", str(tmp_path / "names.json"), "--set"])
    content = json.loads((tmp_path / "names.json").read_text())
    assert content["name_threshold"] == 0.55 and content["data"]["rooms"]["true_instances"] == 4
    assert BiFusionProcessor.from_pretrained(folder / "checkpoint").name_threshold == 0.55
