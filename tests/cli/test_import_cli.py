import json

import numpy as np
import pytest
from recording_files import make_frames, save_image, write_folders

from bifusion_hf.cli.import_data import build_parser, main
from bifusion_hf.data.frames import frame_from_row, load_frames


def write_labelme(folder, names):
    folder.mkdir()
    for name in names:
        shape = {"label": "mug", "points": [[4, 6], [12, 16]], "shape_type": "rectangle", "group_id": None}
        content = {"imagePath": f"{name}.png", "imageWidth": 32, "imageHeight": 24, "shapes": [shape]}
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "desk", make_frames(4), poses=False)
    write_labelme(tmp_path / "labels", [0, 10, 20, 30])
    return ["desk", "--output", "out", "--annotations", "labels"]


def test_a_folder_becomes_a_data_set(arguments, capsys):
    main([*arguments, "--val", "0.5", "--depth_scale", "2000"])
    output = capsys.readouterr().out
    assert "train: 2 frames\n  objects of mug: 2\nval: 2 frames" in output and output.endswith("-> out\n")
    assert "classes: 3 of its own: wall, floor, mug" in output
    rows = load_frames("out", "val")
    assert rows["frame_id"] == ["desk_20", "desk_30"]
    frame = frame_from_row(rows[0])
    assert (frame.semantic == 2).sum() == 80 and np.median(frame.depth[frame.depth > 0]) < 1.6


def test_labels_that_fail_end_it_with_an_error(arguments, tmp_path, capsys):
    for index, frame in enumerate(make_frames(4)):
        save_image(tmp_path / "instance" / f"{10 * index}.png", (frame.instance + 1).astype(np.uint16))
    save_image(tmp_path / "instance" / "0.png", np.zeros((8, 16), dtype=np.uint16))
    with pytest.raises(SystemExit, match=r"the labels of 1 frames failed; the first: instance/0.png: is of an image"):
        main([*arguments[:3], "--instances", "instance"])
    assert "train: 2 frames" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all", "--output", "out"], "nowhere/at/all: no such file or folder"),
        (["desk", "--output", "out", "--annotations", "none.json"], "none.json: no such file or folder"),
        (["desk", "--output", "out", "--annotations", "desk", "--format", "yolo"], "has no names of classes"),
        (["desk", "--output", "out", "--classes", "names.txt"], "classes names those of annotations or semantics"),
    ],
)
def test_errors_are_one_line(arguments, words, message):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert message in str(error.value) and str(error.value).startswith("bifusion-import: error: ")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(
        action.help and (action.option_strings or [action.metavar])[-1] in text for action in build_parser()._actions
    )
