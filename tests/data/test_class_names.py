import json

import pytest
from huggingface_hub.errors import EntryNotFoundError

from bifusion_hf.data.class_names import class_list, classes_text, like, read_classes, read_name_file
from bifusion_hf.io.files import DataFileError
from bifusion_hf.labels import SCANNET200_CLASS_NAMES


def test_classes_of_scannet200_keep_its_order():
    assert class_list(["table", "chair"]) == SCANNET200_CLASS_NAMES == class_list([])
    assert class_list(SCANNET200_CLASS_NAMES[::-1]) == SCANNET200_CLASS_NAMES


def test_other_classes_come_after_wall_and_floor():
    assert class_list(["mug", "floor", "chair", "mug"]) == ("wall", "floor", "mug", "chair")


def test_classes_are_read_as_they_were_written(tmp_path):
    assert read_classes(tmp_path) == read_classes("sample") == SCANNET200_CLASS_NAMES
    (tmp_path / "classes.json").write_text(classes_text(("wall", "floor", "Möhre")), encoding="utf-8")
    assert read_classes(tmp_path) == ("wall", "floor", "Möhre")
    assert "Möhre" in classes_text(("Möhre",)), "for people to read"


def test_a_data_set_of_the_hub_has_its_own_classes_or_those_of_scannet200(tmp_path, monkeypatch):
    verified = []

    def download(repository, name, *, repo_type, revision):
        assert (name, repo_type, revision) == ("classes.json", "dataset", "v2")
        if repository != "org/rooms":
            raise EntryNotFoundError("no such file")
        (tmp_path / name).write_text(classes_text(("wall", "floor", "mug")), encoding="utf-8")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("bifusion_hf.io.hub_files.verify_download", verified.append)
    assert read_classes("org/rooms@v2") == ("wall", "floor", "mug")
    assert verified == [str(tmp_path / "classes.json")], "a download that was cut short is refused"
    assert read_classes("org/others@v2") == SCANNET200_CLASS_NAMES


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"0": "wall"}, "no list of class names"),
        (["mug", "wall", "floor"], "first"),
        (["wall", "floor", "mug", "mug"], "different ones"),
        (["wall", "floor", ""], "no list of class names"),
        (["wall", "floor", 3], "no list of class names"),
        (["floor", "wall", "mug"], r"has the names \['floor', 'wall', 'mug'\]...; expected different ones, .* first"),
    ],
)
def test_a_malformed_list_is_refused(tmp_path, content, message):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(DataFileError, match=message):
        read_classes(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("names.txt", "\ufeffmug\n \n drill \n", ({0: "mug", 1: "drill"}, False)),
        ("data.yaml", "path: .\nnames: [mug, drill]\n", ({0: "mug", 1: "drill"}, False)),
        ("data.yaml", "names: {3: mug, 7: drill}\n", ({3: "mug", 7: "drill"}, True)),
        ("names.json", '{"3": "mug", "7": "drill"}', ({3: "mug", 7: "drill"}, True)),
        ("names.json", '["mug", "drill"]', ({0: "mug", 1: "drill"}, False)),
        ("NAMES.JSON", '{"names": {"3": " mug", "7": "drill\\n"}}', ({3: "mug", 7: "drill"}, True)),
        ("Data.YML", "- mug\n- names\n", ({0: "mug", 1: "names"}, False)),
    ],
)
def test_names_of_a_file(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_name_file(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("names.txt", "", "has the names"),
        ("names.txt", "mug\nmug", "'mug' twice"),
        ("names.json", '["drill", "mug ", "cup", "mug"]', "'mug' twice"),
        ("names.json", '["mug", " "]', "expected text"),
        ("names.json", '{"a": "mug"}', "no names of classes"),
        ("names.json", "3", "no names of classes"),
        ("names.json", "[1]", "expected text"),
        ("data.yaml", "names: [", "is not YAML"),
    ],
)
def test_a_malformed_file_of_names_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataFileError, match=message):
        read_name_file(tmp_path / name)


def test_likely_names_are_offered():
    assert like("Office_Chair", SCANNET200_CLASS_NAMES) == " (did you mean 'office chair'?)"
    assert like("zzz", SCANNET200_CLASS_NAMES) == ""
    # Capitals and underscores say nothing, however short the words are.
    assert like("TV", ["tv", "tie"]) == " (did you mean 'tv'?)"
    assert like("a_b_c_d", ["a b c d"]) == " (did you mean 'a b c d'?)"
