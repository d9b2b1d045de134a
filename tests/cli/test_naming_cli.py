"""Names by text on the command line: a frame, a scene and its questions, an evaluation, and what is refused."""

import json

import datasets
import pytest
import torch
from ply_files import read_comments
from recording_files import make_frames, write_folders

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.cli import evaluate, predict, scan
from bifusion_hf.data.frames import frame_features, frame_to_row


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a recording of it, and the same frames as a data set."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("naming")
    point_config = {"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8}
    config = BiFusionConfig.from_preset("tiny", point_config=point_config, hidden_size=8)
    BiFusionForInstanceSegmentation(config).save_pretrained(path / "checkpoint")
    BiFusionProcessor.from_config(config, num_points=400).save_pretrained(path / "checkpoint")
    frames = make_frames(3)
    write_folders(path / "room", frames)
    (path / "frames" / "data").mkdir(parents=True)
    rows = datasets.Dataset.from_list([frame_to_row(frame) for frame in frames], features=frame_features())
    rows.to_parquet(path / "frames" / "data" / "val-00000-of-00001.parquet")
    return path


def test_a_frame_is_named(folder, clip_folder, tmp_path):
    (tmp_path / "labels.txt").write_text("mug\nkeyboard\noffice chair\n")
    (tmp_path / "templates.txt").write_text("a photo of the {}\n{} in a room\n")
    common = ["--data", str(folder / "frames"), "--checkpoint", str(folder / "checkpoint"), "--threshold", "0"]
    common += ["--labeler", clip_folder, "--templates", str(tmp_path / "templates.txt"), "--device", "cpu"]
    results = {}
    for mode in ("crops", "dense"):
        out = tmp_path / mode
        words = ["--labels", str(tmp_path / "labels.txt"), "--labeler_mode", mode, "--top_k", "2"]
        predict.main([*common, *words, "--output", str(out)])
        content = results[mode] = json.loads(next(out.glob("*.json")).read_text())
        assert content["labels"] == ["mug", "keyboard", "office chair"]
        assert content["labeler"]["mode"] == mode and len(content["labeler"]["templates"]) == 2
        assert content["segments"]
        for segment in content["segments"]:
            assert segment["name"] == segment["text_label"] in [*content["labels"], "unknown"]
            assert len(segment["text_labels"]) == 2 and segment["semantic_label"]
        comments = read_comments(next(out.glob("*.ply")))
        assert comments == [f"instance {segment['id']} {segment['name']}" for segment in content["segments"]]
    scores = [[segment["text_score"] for segment in results[mode]["segments"]] for mode in results]
    assert scores[0] != scores[1]


def test_a_scan_answers_questions_without_the_frames(folder, clip_folder, tmp_path, capsys, monkeypatch):
    common = [str(folder / "room"), "--checkpoint", str(folder / "checkpoint"), "--threshold", "0", "--min_score", "0"]
    common += ["--min_views", "1", "--labeler", clip_folder, "--output", str(tmp_path / "out"), "--device", "cpu"]
    common += ["--animation", "none"]
    scan.main([*common, "--find", "red mug", "--find", "bed", "--top_k", "2"])
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert list(content["found"]) == ["red mug", "bed"] and "red mug:\n  object " in printed
    ids = {item["id"] for item in content["objects"]}
    for matches in content["found"].values():
        assert len(matches) == 2 and {match["id"] for match in matches} <= ids
        assert matches[0]["similarity"] >= matches[1]["similarity"]

    # The scan has ended: nothing is segmented or looked at again.
    monkeypatch.setattr("bifusion_hf.scenes.SceneSession.update", lambda *_: pytest.fail("a frame was taken in"))
    monkeypatch.setattr("bifusion_hf.labeling.TextLabeler.instance_features", lambda *_: pytest.fail("looked again"))
    scan.main([*common, "--labels", "mug", "bed", "keyboard"])
    content = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert "found" not in content and content["labels"] == ["mug", "bed", "keyboard"]
    assert {item["name"] for item in content["objects"]} <= {"mug", "bed", "keyboard", "unknown"}
    with pytest.raises(SystemExit, match="was made with the labeler {.*'crops'.*}; this one is {.*'dense'"):
        scan.main([*common, "--labels", "mug", "bed", "--labeler_mode", "dense"])


@pytest.mark.parametrize("scenes", [False, True])
def test_an_evaluation_by_text(folder, siglip_folder, tmp_path, scenes):
    output = tmp_path / "results.json"
    words = [str(folder / "checkpoint"), "--data", str(folder / "frames"), "--cpu", "--output", str(output)]
    words += ["--candidate_labels", "scannet200", "--labeler", siglip_folder, "--labeler_mode", "dense"]
    evaluate.main([*words, *(["--scenes", "--threshold", "0"] if scenes else [])])
    results = json.loads(output.read_text())
    assert len(results["class_aware"]["classes"]) == 198 and {"head", "common", "tail"} <= set(results["class_aware"])
    assert results["protocol"]["candidate_labels"] == "scannet200"
    assert results["protocol"]["labeler"]["model"] == siglip_folder
    assert results["protocol"]["labeler"]["mode"] == "dense"


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (predict, ["--labels", "mug"], "--labels needs --labeler"),
        (predict, ["--labeler", "clip"], "--labeler needs --labels"),
        (predict, ["--labeler_mode", "dense"], "--labeler_mode needs --labeler"),
        (scan, ["--find", "mug"], "--find needs --labeler"),
        (scan, ["--labeler", "clip"], "--labeler needs --find or --labels"),
        (evaluate, ["--candidate_labels", "mug"], "--candidate_labels needs --labeler"),
        (
            evaluate,
            ["--candidate_labels", "mug", "--labeler", "clip", "--class_agnostic"],
            "--candidate_labels and --predictions, --class_agnostic exclude each other",
        ),
    ],
)
def test_options_that_need_each_other(command, words, message, capsys):
    base = {predict: ["--data", "sample", "--output", "o"], scan: ["room", "--output", "o"]}
    with pytest.raises(SystemExit) as end:
        command.main([*base.get(command, ["sample", "--data", "sample"]), *words])
    assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "labeler", "message"),
    [
        (["mug", " "], None, "has an empty label, number 2 of 2"),
        (["mug", "mug"], None, "has 'mug' more than once"),
        (["mug"], "nobody-here", "nobody-here: no such folder, and no id of the Hub"),
        (["mug"], "checkpoint", "has no text tower"),
    ],
)
def test_bad_input_is_told_in_a_line(folder, clip_folder, tmp_path, labels, labeler, message):
    labeler = clip_folder if labeler is None else labeler
    labeler = str(folder / labeler) if labeler == "checkpoint" else labeler
    words = ["--data", str(folder / "frames"), "--checkpoint", str(folder / "checkpoint"), "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        predict.main([*words, "--output", str(tmp_path), "--labels", *labels, "--labeler", labeler])
    assert str(end.value.code).startswith("bifusion-predict: error: ") and message in str(end.value.code)
