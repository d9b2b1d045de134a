"""Labels as pictures and arrays: numbers, names, and what an object is called."""

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.data.annotations.label_images import LabelImages
from bifusion_hf.io.files import DataFileError


# Twice as large as the depth image, on whose grid they are wanted.
IMAGE_SIZE, SHAPE = (8, 6), (3, 4)
INSTANCE = np.array([[-1, 0, 0, 3], [-1, 0, 0, 3], [5, 5, -1, -1]])
# Object 0 is a stool but for one pixel, object 3 a bench, object 5 has no class; one pixel has a class and no object.
SEMANTIC = np.array([[0, 0, 1, 1], [-1, 0, 0, 1], [-1, -1, -1, 1]])
CLASSES = {"stool": 0, "bench": 4}


def write(folder, values, name="a", ending=".png"):
    folder.mkdir(exist_ok=True)
    values = values.repeat(2, 0).repeat(2, 1)
    if ending == ".npy":
        np.save(folder / f"{name}.npy", values)
    else:
        Image.fromarray((values + 1).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("ending", "numbered", "names"),
    [
        (".png", False, {0: "stool", 1: "bench"}),
        (".png", True, {1: "stool", 2: "bench"}),
        # Arrays have no number for nothing, so none is added to theirs.
        (".npy", False, {0: "stool", 1: "bench"}),
        (".npy", True, {0: "stool", 1: "bench"}),
    ],
)
def test_an_object_has_the_class_of_most_of_its_pixels(ending, numbered, names, tmp_path):
    instances = write(tmp_path / "instance", INSTANCE, ending=ending)
    semantics = write(tmp_path / "semantic", SEMANTIC, ending=ending)
    labels = LabelImages(instances, semantics, names, numbered=numbered)
    assert labels.names == ["a"] and labels.labels == ["stool", "bench"]
    assert list(labels.files()) == [instances / f"a{ending}", semantics / f"a{ending}"]
    drawn = labels.draw("a", IMAGE_SIZE, SHAPE, CLASSES)
    np.testing.assert_array_equal(drawn.instance, INSTANCE)
    np.testing.assert_array_equal(drawn.semantic, [[0, 0, 0, 4], [-1, 0, 0, 4], [-1, -1, -1, 4]])
    assert drawn.notes == ["objects of stool", "objects of bench", "objects without a class, left out of training"]


def test_numbers_are_those_of_the_list_unless_the_file_has_its_own(tmp_path):
    folders = write(tmp_path / "instance", INSTANCE), write(tmp_path / "semantic", SEMANTIC)
    drawn = LabelImages(*folders, {0: "stool", 1: "bench"}).draw("a", IMAGE_SIZE, SHAPE, CLASSES)
    assert drawn.semantic.dtype == np.int32 and set(np.unique(drawn.semantic)) == {-1, 0, 4}


def test_objects_without_classes(tmp_path):
    labels = LabelImages(write(tmp_path, INSTANCE))
    assert labels.labels == [] and list(labels.files()) == [tmp_path / "a.png"]
    drawn = labels.draw("a", (16, 12), SHAPE, {})
    np.testing.assert_array_equal(drawn.instance, INSTANCE)
    assert drawn.semantic is None and drawn.notes == ["objects"] * 3


@pytest.mark.parametrize(
    ("ending", "numbered", "number"), [(".png", False, 2), (".png", True, 2), (".npy", False, 1), (".npy", True, 1)]
)
def test_a_number_without_a_name_is_told_as_the_file_has_it(ending, numbered, number, tmp_path):
    instances = write(tmp_path / "instance", INSTANCE, ending=ending)
    semantics = write(tmp_path / "semantic", SEMANTIC, ending=ending)
    labels = LabelImages(instances, semantics, {1 if numbered and ending == ".png" else 0: "stool"}, numbered)
    with pytest.raises(DataFileError, match=rf"semantic/a\{ending}: has the number {number}, which is no class of"):
        labels.draw("a", IMAGE_SIZE, SHAPE, CLASSES)


def test_names_that_only_one_of_the_folders_has_are_told(tmp_path):
    for name in "abcx":
        write(tmp_path / "instance", INSTANCE, name)
    for name in "defgx":
        write(tmp_path / "semantic", SEMANTIC, name)
    with pytest.raises(DataFileError, match=r"semantic: and .*instance do not both have a, b, c, d, e$"):
        LabelImages(tmp_path / "instance", tmp_path / "semantic", {0: "stool"})
    with pytest.raises(DataFileError, match="nowhere: no such folder"):
        LabelImages(tmp_path / "instance", tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["instance", "semantic"])
def test_a_picture_of_another_aspect_is_refused(kind, tmp_path):
    pictures = {"instance": INSTANCE, "semantic": SEMANTIC}
    pictures[kind] = pictures[kind].T
    folders = [write(tmp_path / name, values) for name, values in pictures.items()]
    with pytest.raises(DataFileError, match=rf"{kind}/a\.png: is of an image of 6x8, and the frame's colour is 8x6"):
        LabelImages(*folders, {0: "stool", 1: "bench"}).draw("a", IMAGE_SIZE, SHAPE, CLASSES)
