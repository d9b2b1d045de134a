import json

from bifusion_hf.io.storage import Folder
from bifusion_hf.prediction.files import merge_results, read_about


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
