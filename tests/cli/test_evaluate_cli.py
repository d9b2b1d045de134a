import json
import os
import shutil

import datasets
import numpy as np
import pytest
import torch
from frame_factory import make_frame
from processes import join, run_processes

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.cli.evaluate import main
from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import frame_features, frame_to_row, load_frames
from bifusion_hf.evaluation import PredictionFile, evaluator
from bifusion_hf.evaluation.evaluator import predict_batch
from bifusion_hf.labels import INSTANCE_CLASS_NAMES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set of four frames, two of them with superpoints, and untrained checkpoints."""
    folder = tmp_path_factory.mktemp("evaluate")
    frames = []
    for seed in range(4):
        superpoints = make_frame(96, 128).instance + 10 if seed < 2 else None
        frames.append(frame_to_row(make_frame(96, 128, seed=seed, superpoints=superpoints)))
    (folder / "frames" / "data").mkdir(parents=True)
    data = datasets.Dataset.from_list(frames, features=frame_features())
    data.to_parquet(folder / "frames" / "data" / "val-00000-of-00001.parquet")
    for name, labels in {"agnostic": {}, "aware": {"id2label": dict(enumerate(INSTANCE_CLASS_NAMES))}}.items():
        torch.manual_seed(0)
        point_config = {"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8}
        config = BiFusionConfig.from_preset("tiny", point_config=point_config, hidden_size=8, **labels)
        BiFusionForInstanceSegmentation(config).save_pretrained(folder / name)
        BiFusionProcessor.from_preset("tiny", config, num_points=2000).save_pretrained(folder / name)
    return folder


def evaluate(folder, *arguments, checkpoint="agnostic"):
    output = folder / "out" / "results.json"
    source = [] if "--predictions" in arguments else [str(folder / checkpoint)]
    main([*source, "--data", str(folder / "frames"), "--cpu", "--output", str(output), *arguments])
    return json.loads(output.read_text())


def test_numbers_protocol_and_saved_predictions(folder, capsys):
    predictions = folder / "predictions.parquet"
    results = evaluate(folder, "--save_predictions", str(predictions), "--include_95", "--batch_size", "2")
    printed = capsys.readouterr().out
    for key in ("all_ap", "all_ap_50%", "all_ap_25%", "all_ap_50:95", "mean_iou"):
        assert f"\n{key}: " in printed
    protocol = results["protocol"]
    assert protocol["data"] == str(folder / "frames")
    assert protocol["superpoints"] == "data set in 2 of 4 frames, else segmented"
    assert (protocol["num_frames"], protocol["points_per_frame"], protocol["min_points"]) == (4, 2000, 10)
    assert "num_frames: 4" in printed
    assert "points_per_frame: 2000" in printed
    assert results["class_agnostic"]["num_instances"] == 12
    assert results["class_agnostic"]["num_predictions"] > 0

    again = evaluate(folder, "--predictions", str(predictions), "--include_95")
    assert {part: again[part] for part in again if part != "protocol"} == {
        part: results[part] for part in results if part != "protocol"
    }
    assert again["protocol"]["points_per_frame"] == 2000


def test_classes_of_another_list_are_not_compared(folder, tmp_path, capsys):
    """The numbers of a data set with classes of its own are others than the network's."""
    shutil.copytree(folder / "frames", tmp_path / "frames")
    for name in ("agnostic", "aware"):
        (tmp_path / name).symlink_to(folder / name)
    own = ["wall", "floor", *(f"thing {index}" for index in range(20))]
    (tmp_path / "frames" / "classes.json").write_text(json.dumps(own))
    saved = ["--limit", "1", "--save_predictions", str(tmp_path / "saved.parquet")]
    results = evaluate(tmp_path, *saved)
    assert (
        "22 (thing 0, thing 1, thing 2, ...) classes of its own, the network 200 (chair, table"
        in capsys.readouterr().out
    )
    assert "semantic" not in results and results["class_agnostic"]["num_instances"] == 3
    again = evaluate(tmp_path, "--limit", "1", "--predictions", str(tmp_path / "saved.parquet"))
    assert again["class_agnostic"] == results["class_agnostic"] and "semantic" not in again
    with pytest.raises(SystemExit, match="--class_agnostic measures the instances without their labels"):
        evaluate(tmp_path, "--limit", "1", checkpoint="aware")
    assert "class_aware" not in evaluate(tmp_path, "--limit", "1", "--class_agnostic", checkpoint="aware")


def test_points_follow_the_seed_and_nothing_else(folder):
    paths = [folder / f"seed{index}.parquet" for index in range(2)]
    for path, seed in zip(paths, ("7", "8"), strict=True):
        results = evaluate(folder, "--limit", "1", "--seed", seed, "--save_predictions", str(path))
        assert results["protocol"]["sampling_seed"] == int(seed)
    (first,), (other,) = (list(PredictionFile(path)) for path in paths)
    assert (first.pixel_indices != other.pixel_indices).any()
    processor = BiFusionProcessor.from_pretrained(folder / "agnostic", sampling_seed=7)
    model = BiFusionForInstanceSegmentation.from_pretrained(folder / "agnostic").eval()
    dataset = FrameDataset(load_frames(folder / "frames", "val"), processor)
    (again,) = predict_batch(model, processor, processor.collate([dataset[0]]))
    for name in ("pixel_indices", "masks", "scores", "labels", "semantic"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_class_aware_checkpoint(folder, capsys):
    results = evaluate(folder, "--limit", "1", checkpoint="aware")
    assert results["class_aware"]["num_instances"] == 3
    assert results["class_aware"]["classes"]["chair"]["num_instances"] == 1
    assert results["class_aware"]["classes"]["sink"]["ap"] is None
    assert results["protocol"]["num_frames"] == 1
    assert results["protocol"]["superpoints"] == "data set"
    printed = capsys.readouterr().out
    assert "class_agnostic_all_ap: " in printed
    assert "head" in printed
    assert "class_aware" not in evaluate(folder, "--limit", "1", "--class_agnostic", checkpoint="aware")


def evaluate_launched(folder, source):
    """As torchrun starts it on a machine without GPU; what it does is written beside the result."""
    if not torch.accelerator.is_available():
        del os.environ["ACCELERATE_USE_CPU"]
    output = folder / f"launched_{os.environ['RANK']}.json"
    words = [*source, "--data", str(folder / "frames"), "--batch_size", "1", "--output", str(output)]
    seen = []
    predict = evaluator.predict_batch

    def watched(model, processor, batch):
        seen.extend(batch["frame_ids"])
        return predict(model, processor, batch)

    evaluator.predict_batch = watched
    try:
        main(words)
    except SystemExit as stop:
        seen = str(stop)
    (folder / f"seen_{os.environ['RANK']}.json").write_text(json.dumps(seen))


def test_launched_processes_share_the_frames_and_one_writes(folder):
    alone = evaluate(folder)
    join(run_processes(evaluate_launched, 2, folder, [str(folder / "agnostic")]))
    seen = [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in range(2)]
    assert [len(names) for names in seen] == [2, 2] and not set(seen[0]) & set(seen[1])
    assert [path.name for path in folder.glob("launched_*.json")] == ["launched_0.json"]
    together = json.loads((folder / "launched_0.json").read_text())
    assert together["class_agnostic"] == alone["class_agnostic"] and together["semantic"] == alone["semantic"]


def test_launched_processes_save_the_predictions_of_one(folder, tmp_path):
    """In shards, of which those that are there are not made again."""
    alone = tmp_path / "alone.parquet"
    expected = evaluate(folder, "--save_predictions", str(alone), "--batch_size", "1", "--shard_size", "1")
    whole = tmp_path / "whole.parquet"
    assert evaluate(folder, "--save_predictions", str(whole), "--batch_size", "1") == expected
    assert whole.read_bytes() == alone.read_bytes()
    together = tmp_path / "together.parquet"
    words = [str(folder / "agnostic"), "--save_predictions", str(together), "--shard_size", "1"]
    join(run_processes(evaluate_launched, 2, folder, words))
    seen = [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in range(2)]
    assert [len(names) for names in seen] == [2, 2] and not set(seen[0]) & set(seen[1])
    assert together.read_bytes() == alone.read_bytes()
    found = json.loads((folder / "launched_0.json").read_text())
    assert {**found, "protocol": None} == {**expected, "protocol": None}


def test_a_stopped_evaluation_goes_on(folder, tmp_path, monkeypatch):
    saved = ["--save_predictions", str(tmp_path / "saved.parquet"), "--shard_size", "2", "--batch_size", "1"]
    expected = evaluate(folder)
    predict, seen = evaluator.predict_batch, []

    def watched(model, processor, batch):
        seen.extend(batch["frame_ids"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return predict(model, processor, batch)

    monkeypatch.setattr(evaluator, "predict_batch", watched)
    with pytest.raises(SystemExit):
        evaluate(folder, *saved)
    with pytest.raises(SystemExit, match="another batch_size"):
        evaluate(folder, *saved[:-1], "2")
    found = evaluate(folder, *saved)
    # The first shard is not made again.
    assert len(seen) == 3 + 2 and found["class_agnostic"] == expected["class_agnostic"]
    assert [path.name for path in tmp_path.iterdir()] == ["saved.parquet"]


def test_saved_predictions_are_for_one_process(folder):
    join(run_processes(evaluate_launched, 2, folder, ["--predictions", str(folder / "none.parquet")]))
    for rank in range(2):
        assert "--predictions needs one process; 2 were launched" in (folder / f"seen_{rank}.json").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "expected either a CHECKPOINT or --predictions"),
        (["checkpoint", "--predictions", "p.parquet"], "expected either a CHECKPOINT or --predictions"),
        (["--predictions", "p", "--seed", "1"], "--seed and --predictions exclude each other"),
    ],
)
def test_usage_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, "--data", "frames"])
    assert message in capsys.readouterr().err


def test_errors_name_what_is_wrong(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"bifusion-evaluate: error: .*no data/test-\*.parquet"):
        evaluate(folder, "--split", "test")
    with pytest.raises(SystemExit, match="absent.parquet: not a file of saved predictions"):
        evaluate(folder, "--predictions", str(tmp_path / "absent.parquet"))
    with pytest.raises(SystemExit, match="--limit is 0"):
        evaluate(folder, "--limit", "0")
    with pytest.raises(SystemExit, match="no_such_checkpoint"):
        evaluate(folder, checkpoint="no_such_checkpoint")


def test_frames_without_labels_are_refused_by_name(folder, tmp_path):
    (tmp_path / "data").mkdir()
    frame = make_frame(96, 128, instance=None, superpoints=np.zeros((96, 128), np.int32))
    data = datasets.Dataset.from_list([frame_to_row(frame)], features=frame_features())
    data.to_parquet(tmp_path / "data" / "val-00000-of-00001.parquet")
    with pytest.raises(SystemExit, match="synthetic 0: no instance labels"):
        main([str(folder / "agnostic"), "--data", str(tmp_path), "--cpu"])


def test_whole_scenes(folder, capsys):
    results = evaluate(folder, "--scenes", "--threshold", "0", "--voxel_size", "0.1")
    # The frames' names begin alike, so they are one scene.
    protocol = results["protocol"]
    assert protocol["num_scenes"] == 1 and protocol["merging"] == "geometric" and protocol["voxel_size"] == 0.1
    assert results["class_agnostic"]["num_instances"] == 3 and results["identity"]["num_frames"] == 4
    assert "keep one id" in capsys.readouterr().out
    unmerged = evaluate(folder, "--scenes", "--threshold", "0", "--merging", "none", checkpoint="aware")
    assert unmerged["protocol"]["masks"] == "union" and "class_aware" in unmerged
    with pytest.raises(SystemExit) as error:
        main(["sample", "--data", "sample", "--scenes", "--save_predictions", "a.parquet"])
    assert error.value.code == 2
    for words in (
        ["--scenes", "--meshes", "a"],
        ["--scenes", "--label_map", "a"],
        ["--meshes", "a", "--label_map", "b"],
    ):
        with pytest.raises(SystemExit) as error:
            main(["sample", "--data", "sample", *words])
        assert error.value.code == 2
    assert "--meshes needs --scenes and --label_map" in capsys.readouterr().err
