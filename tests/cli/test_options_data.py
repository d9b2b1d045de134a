"""Every option of the commands that make data reaches what it is for; see `command_options.py`."""

import pytest
from command_options import (
    Command,
    all_options,
    check_no_option_is_left_out,
    check_option_reaches_its_consumer,
    check_the_same_words_give_the_same,
)


def replace_in_prepare_scannet200(calls):
    for name in ("prepare_scannet200", "prepare_esam"):
        calls.replace(f"cli.prepare_scannet200.{name}", {"splits": {}})
    calls.replace("cli.prepare_scannet200.report_summary", "")


def replace_in_import_data(calls):
    calls.replace("cli.import_data.import_recording", {"splits": {}})
    calls.replace("cli.import_data.report_text", "")


def replace_in_render_rooms(calls):
    calls.replace("cli.render_rooms.require_package")
    calls.replace("cli.render_rooms.build_dataset", {"sha256": {}})


COMMANDS = {
    "prepare_scannet200": Command(
        replace_in_prepare_scannet200,
        ["--scans", "scans", "--output", "out", "--split", "train=train.txt"],
        {
            "--scans": (["--scans", "other"], []),
            "--esam": (["--esam", "folder"], None),
            "--output": (["--output", "other"], []),
            "--split": (["--split", "val=val.txt"], []),
            "--workers": (["--workers", "3"], []),
            "--scans_per_shard": (["--scans_per_shard", "3"], []),
            "--jpeg_quality": (["--jpeg_quality", "0"], []),
            "--label_map": (["--label_map", "labels.tsv"], []),
            "--labels": (["--labels", "none"], []),
            "--frame_interval": (["--frame_interval", "7"], []),
            "--image_size": (["--image_size", "320", "240"], []),
            "--axis_align": (["--axis_align"], []),
            "--max_label_distance": (["--max_label_distance", "0.5"], []),
            "--assume_registered": (["--assume_registered"], []),
            "--sequences": (["--sequences"], []),
            "--engine": (["--engine", "ray"], []),
            "--address": (["--engine", "ray", "--address", "auto"], ["--engine", "ray"]),
        },
        {"--esam": ["--esam", "folder", "--output", "out", "--split", "train"]},
    ),
    "import_data": Command(
        replace_in_import_data,
        ["source", "--output", "out"],
        {
            "source": (["other"], None),
            "--output": (["--output", "other"], []),
            "--annotations": (["--annotations", "labels.json"], []),
            "--format": (["--format", "yolo"], []),
            "--instances": (["--instances", "instance"], []),
            "--semantics": (["--semantics", "semantic"], ["--instances", "instance", "--classes", "names.txt"]),
            "--classes": (["--classes", "names.txt"], ["--annotations", "labels.json"]),
            "--unannotated": (["--unannotated", "keep"], []),
            "--skip_unmatched": (["--skip_unmatched"], []),
            "--val": (["--val", "0.5"], []),
            "--val_frames": (["--val_frames", "val.txt"], []),
            "--jpeg_quality": (["--jpeg_quality", "0"], []),
            "--frames_per_shard": (["--frames_per_shard", "7"], []),
            "--workers": (["--workers", "3"], []),
            "--engine": (["--engine", "ray"], []),
            "--address": (["--engine", "ray", "--address", "auto"], ["--engine", "ray"]),
            "--every": (["--every", "3"], []),
            "--limit": (["--limit", "3"], []),
            "--scene": (["--scene", "room"], []),
            "--up": (["--up=-y"], []),
            "--max_difference": (["--max_difference", "0.5"], []),
            "--depth_scale": (["--depth_scale", "5000"], []),
            "--intrinsics": (["--intrinsics", "1", "2", "3", "4"], []),
            "--split": (["--split", "train"], []),
        },
        {"source": ["other", "--output", "out"]},
    ),
    "render_rooms": Command(
        replace_in_render_rooms,
        ["--output", "out", "--train", "2", "--workers", "1"],
        {
            "--furniture": (["--furniture", "chairs.sh3f"], []),
            "--output": (["--output", "other"], []),
            "--train": (["--train", "5"], []),
            "--val": (["--val", "5"], []),
            "--width": (["--width", "64"], []),
            "--height": (["--height", "48"], []),
            "--seed": (["--seed", "5"], []),
            "--views": (["--views", "5"], []),
            "--path": (["--path"], []),
            "--libraries": (["--libraries", "Scopia"], ["--furniture", "chairs.sh3f"]),
            "--texture_pack": (["--texture_pack", "miniworld.whl"], []),
            "--photometric": (["--photometric"], []),
            "--world": (["--world", "tabletop"], []),
            "--sensor": (["--sensor", "mixed"], []),
            "--workers": (["--workers", "77"], []),
            "--jpeg_quality": (["--jpeg_quality", "50"], []),
            "--cache": (["--cache", "elsewhere"], []),
            "--engine": (["--engine", "ray"], []),
            "--address": (["--engine", "ray", "--address", "auto"], ["--engine", "ray"]),
        },
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_looked_at(command):
    check_no_option_is_left_out(command, COMMANDS[command])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_words_give_the_same(tmp_path, monkeypatch, command):
    check_the_same_words_give_the_same(command, COMMANDS[command], tmp_path, monkeypatch)


@pytest.mark.parametrize(("command", "option"), all_options(COMMANDS))
def test_option_reaches_its_consumer(tmp_path, monkeypatch, command, option):
    check_option_reaches_its_consumer(command, COMMANDS[command], option, tmp_path, monkeypatch)
