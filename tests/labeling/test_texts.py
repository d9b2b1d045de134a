import pytest

from bifusion_hf.io.files import DataFileError
from bifusion_hf.labeling.texts import MAX_LABELS, TEMPLATES, read_labels, read_templates
from bifusion_hf.labels import INSTANCE_CLASS_NAMES


def test_labels_from_every_source(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("# kitchen\nmug\n\n  coffee   maker \n", encoding="utf-8")
    assert read_labels(path) == read_labels(str(path)) == ["mug", "coffee maker"]
    assert read_labels("mug, coffee maker") == read_labels(["mug", "coffee  maker"]) == ["mug", "coffee maker"]
    assert read_labels("mug") == ["mug"]
    assert read_labels("scannet200") == list(INSTANCE_CLASS_NAMES)
    assert read_labels(["mug, red"]) == ["mug, red"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "candidate_labels has no label"),
        ("  ", "candidate_labels has no label"),
        (["mug", " "], "has an empty label, number 2 of 2"),
        ("mug,,bed", "has an empty label, number 2 of 3"),
        (["mug", 3], "has 3, a int; expected text"),
        (["mug", "bed", "mug"], "has 'mug' more than once"),
        ([f"thing {index}" for index in range(10_000)], f"has 10000 labels; expected at most {MAX_LABELS}"),
    ],
)
def test_bad_labels_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        read_labels(labels)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "labels.txt"
    with pytest.raises(DataFileError, match=r"labels\.txt"):
        read_labels(path)
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"labels\.txt has no label"):
        read_labels(path)
    path.write_bytes(b"\xff\xfe\x00mug")
    with pytest.raises(DataFileError, match="cannot be read as text"):
        read_labels(path)
    # A name longer than a file's can be is a label.
    assert read_labels("x" * 5000) == ["x" * 5000]


def test_templates(tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\n{} in a room\n", encoding="utf-8")
    assert read_templates(path) == read_templates(str(path)) == ("a {}.", "{} in a room")
    assert read_templates("my {}") == ("my {}",)
    assert read_templates(None) == TEMPLATES
    for bad in ["a thing"], ["{} and {}"], ["a {name}"], ["a {} {name}"]:
        with pytest.raises(ValueError, match="expected a sentence with one place"):
            read_templates(bad)
    with pytest.raises(ValueError, match="has no template"):
        read_templates([])
    with pytest.raises(DataFileError, match="nowhere"):
        read_templates("nowhere.txt")
