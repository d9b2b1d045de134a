import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.storage import Folder
from bifusion_hf.prediction.files import (
    WRITERS,
    ParquetResults,
    mask_of_runs,
    merge_results,
    read_about,
    read_results,
)
from bifusion_hf.results import run_lengths


def coco(images, annotations, categories):
    return {
        "info": {"frames": 0},
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "name": name}
            for number, image, category, name in annotations
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


def test_files_of_several_frames_become_one_with_ids_that_go_on(tmp_path):
    """An annotation stays with its frame, whatever numbers the file had given them."""
    cup, bed, mug = (7, "cup"), (3, "bed"), (1, "mug")
    parts = {
        "a.json": coco([(0, "a0"), (1, "a1"), (2, "a2")], [(1, 2, 7, "a2 cup"), (2, 0, 3, "a0 bed")], [cup, bed]),
        "b.json": coco([], [], []),
        "c.json": coco([(5, "c0"), (2, "c1"), (9, "c2")], [(4, 5, 3, "c0 bed"), (8, 9, 1, "c2 mug")], [mug, bed]),
    }
    folder = Folder(tmp_path)
    for name, content in parts.items():
        (tmp_path / name).write_text(json.dumps(content))
    merge_results(folder, list(parts), "all.json", {"frames": 6})
    merged = json.loads((tmp_path / "all.json").read_text())
    assert read_about(folder, "all.json") == {"frames": 6}
    names = ["a0", "a1", "a2", "c0", "c1", "c2"]
    assert [(image["id"], image["file_name"]) for image in merged["images"]] == list(enumerate(names))
    found = [(one["id"], names[one["image_id"]], one["category_id"], one["name"]) for one in merged["annotations"]]
    assert found == [(1, "a2", 7, "a2 cup"), (2, "a0", 3, "a0 bed"), (3, "c0", 3, "c0 bed"), (4, "c2", 1, "c2 mug")]
    assert [(one["id"], one["name"]) for one in merged["categories"]] == [(1, "mug"), (3, "bed"), (7, "cup")]


@pytest.mark.parametrize("runs", [[1, 2, 3], [0, 2, 4], [6], [0, 6], [2, 1, 1, 2]])
def test_runs_go_down_the_columns_and_begin_outside(runs):
    mask = mask_of_runs(runs, 2, 3)
    inside = [index % 2 == 1 for index, length in enumerate(runs) for _ in range(length)]
    assert mask.dtype == bool and mask.shape == (2, 3)
    assert [bool(mask[place % 2, place // 2]) for place in range(6)] == inside
    assert run_lengths(mask) == runs


class Result(dict):
    """Two segments in a frame of 2 x 3 pixels, the first of them with a name beside its label."""

    def __init__(self, frame_id):
        super().__init__(segmentation=np.array([[4, 4, -1], [-1, 7, 7]]))
        self.frame = SimpleNamespace(frame_id=frame_id)

    def to_json(self):
        segments = [
            {"id": 4, "label": "object", "name": "cup", "score": 0.5},
            {"id": 7, "label": "bed", "score": 0.25},
        ]
        return {"frame_id": self.frame.frame_id, "height": 2, "width": 3, "segments": segments}


def test_a_row_tells_what_is_in_a_frame_and_rows_are_written_in_groups(tmp_path):
    writer = ParquetResults(tmp_path / "a.parquet")
    for number in range(65):
        writer.write(100 + number, Result(f"frame {number}"))
    writer.close({"frames": 65})
    folder = Folder(tmp_path)
    merge_results(folder, ["a.parquet", "a.parquet"], "all.parquet", {"frames": 130})
    for name, groups in (("a.parquet", [64, 1]), ("all.parquet", [64, 1, 64, 1])):
        metadata = pq.read_metadata(tmp_path / name)
        assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == groups
        assert {metadata.row_group(0).column(column).compression for column in range(8)} == {"ZSTD"}
        assert read_about(folder, name) == {"frames": sum(groups)}
        row = pq.read_table(tmp_path / name).to_pylist()[64]
        # The order of the columns tells files of results from others.
        assert list(row) == ["frame_id", "number", "height", "width", "names", "scores", "masks", "content"]
        assert row == {
            "frame_id": "frame 64",
            "number": 164,
            "height": 2,
            "width": 3,
            "names": ["cup", "bed"],
            "scores": [0.5, 0.25],
            "masks": [[0, 1, 1, 1, 3], [3, 1, 1, 1]],
            "content": json.dumps(Result("frame 64").to_json()),
        }
    *_, last = read_results(folder, ["a.parquet"])
    assert (last["frame_id"], last["number"]) == ("frame 64", 164)
    for segment in last["segments"]:
        np.testing.assert_array_equal(segment["mask"], Result("")["segmentation"] == segment["id"])


def test_what_tells_nothing_of_its_frames_is_no_file_of_results(tmp_path):
    for name, text in (("a.json", "{"), ("b.json", "[]"), ("c.json", "{}")):
        (tmp_path / name).write_text(text)
    ParquetResults(tmp_path / "d.parquet").close({})
    pq.write_table(pq.read_table(tmp_path / "d.parquet").replace_schema_metadata(None), tmp_path / "d.parquet")
    for name in ("a.json", "b.json", "c.json", "d.parquet"):
        with pytest.raises(DataFileError, match=rf"{name}: is no file of results \("):
            read_about(Folder(tmp_path), name)
    assert {kind: suffix for kind, (suffix, _) in WRITERS.items()} == {"parquet": ".parquet", "coco": ".json"}
