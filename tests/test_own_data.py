"""docs/own_data.md: its commands run in their order, on a recording as it describes one."""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from recording_files import write_folders

from bifusion_hf.data.annotations.base import runs_of
from bifusion_hf.data.class_names import read_classes
from bifusion_hf.data.frames import frame_from_row, load_frames


DOCUMENT = Path(__file__).parents[1] / "docs" / "own_data.md"
# The last frames for one epoch.
SHORT = {
    "train": ["--data.max_train_frames", "2", "--data.num_workers", "0", "--training.epochs", "1"]
    + ["--training.mixed_precision", "no", "--evaluation.every_epochs", "1", "--model.processor.num_points", "2000"],
}


def commands():
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def write_labels(path, frames):
    """COCO's runs of the things in the frames, large and small."""
    images, annotations = [], []
    for index, frame in enumerate(frames):
        height, width = frame.depth.shape
        images.append({"id": index, "file_name": f"color/{10 * index}.png", "width": width, "height": height})
        for number in np.unique(frame.instance[(frame.instance >= 0) & (frame.semantic > 1)]):
            mask = frame.instance == number
            runs = {"size": [height, width], "counts": runs_of(mask).tolist()}
            annotations.append(
                {"image_id": index, "category_id": int(mask.sum() > 2000), "segmentation": runs, "iscrowd": 0}
            )
    categories = [{"id": 0, "name": "small thing"}, {"id": 1, "name": "large thing"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))


@pytest.mark.slow
def test_the_worked_example(tmp_path, monkeypatch, capsys):
    frames = [frame_from_row(load_frames("sample", "train")[index]) for index in range(4)]
    write_folders(tmp_path / "desk", frames, poses=False)
    write_labels(tmp_path / "labels.json", frames)
    monkeypatch.chdir(tmp_path)
    programs = []
    for program, *words in commands():
        name = program.removeprefix("bifusion-")
        programs.append(name)
        module = importlib.import_module(f"bifusion_hf.cli.{'import_data' if name == 'import' else name}")
        module.main([*words, *SHORT.get(name, [])])
    output = capsys.readouterr().out
    assert programs == ["import", "train", "evaluate", "predict"]
    assert "train: 3 frames" in output and "val: 1 frames" in output and "all_ap" in output
    classes = read_classes("mine")
    assert classes == ("wall", "floor", "small thing", "large thing")
    # The last one, whose labels are those that were drawn.
    found = frame_from_row(load_frames("mine", "val")[0])
    things = (frames[3].instance >= 0) & (frames[3].semantic > 1)
    np.testing.assert_array_equal(found.instance >= 0, things)
    assert set(np.unique(found.semantic)) <= {-1, 2, 3}
    config = json.loads(Path("outputs/mine/best/config.json").read_text())
    assert config["num_semantic_labels"] == len(classes)
    assert len(list(Path("out").iterdir())) > 1
