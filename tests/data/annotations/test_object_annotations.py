import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.data.annotations import open_annotations
from bifusion_hf.data.annotations.base import resample, runs_of
from bifusion_hf.data.annotations.coco import read_runs
from bifusion_hf.io.files import DataFileError


WIDTH, HEIGHT = 32, 24
SQUARE = [4, 6, 12, 6, 12, 16, 4, 16]
CLASSES = {"cup": 7, "mug": 8}


def square_mask():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[6:16, 4:12] = True
    return mask


def png(mask):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def coco(*annotations, **changes):
    content = {
        "images": [{"id": 5, "file_name": "color/10.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "mug"}, {"id": 1, "name": "cup"}],
        "annotations": [{"image_id": 5, "category_id": 3, "iscrowd": 0, **item} for item in annotations],
    }
    return {**content, **changes}


def labelme(*shapes, **changes):
    shapes = [{"label": "mug", "group_id": None, "shape_type": "polygon", **item} for item in shapes]
    return {"imagePath": "..\\color\\10.jpg", "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": shapes, **changes}


def pairs(values):
    return np.reshape(values, (-1, 2)).tolist()


def write(folder, content, name="labels.json"):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def draw(annotations, shape=(HEIGHT, WIDTH), image_size=(WIDTH, HEIGHT)):
    (name,) = annotations.names
    return annotations.draw(name, image_size, shape, CLASSES)


def yolo_folder(folder, text, names="names: {0: cup, 1: mug}"):
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "data.yaml").write_text(names)
    (folder / "labels" / "train" / "10.txt").write_text(text)
    return folder / "labels"


def fractions(values):
    return " ".join(str(value) for value in (np.reshape(values, (-1, 2)) / (WIDTH, HEIGHT)).reshape(-1))


SAME_SQUARE = {
    "COCO polygon": lambda folder: write(folder, coco({"segmentation": [SQUARE]})),
    "COCO runs": lambda folder: write(
        folder, coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": runs_of(square_mask()).tolist()}})
    ),
    "COCO parts": lambda folder: write(
        folder, coco({"segmentation": [[4, 6, 12, 6, 12, 10, 4, 10], [4, 10, 12, 10, 12, 16, 4, 16]]})
    ),
    "labelme polygon": lambda folder: write(folder, labelme({"points": pairs(SQUARE)})),
    "labelme rectangle": lambda folder: write(
        folder, labelme({"points": [[12, 6], [4, 16]], "shape_type": "rectangle"})
    ),
    "labelme mask": lambda folder: write(
        folder,
        labelme({"points": [[4, 6], [11, 15]], "shape_type": "mask", "mask": png(square_mask()[6:16, 4:12])}),
    ),
    "labelme group": lambda folder: write(
        folder,
        labelme(
            {"points": pairs([4, 6, 12, 6, 12, 10, 4, 10]), "group_id": 2},
            {"points": pairs([4, 10, 12, 10, 12, 16, 4, 16]), "group_id": 2},
        ),
    ),
    "YOLO": lambda folder: yolo_folder(folder, f"1 {fractions(SQUARE)}\n  \n\n"),
}


@pytest.mark.parametrize("kind", SAME_SQUARE)
def test_every_format_draws_the_same_square(kind, tmp_path):
    annotations = open_annotations(SAME_SQUARE[kind](tmp_path / "place"))
    assert set(annotations.labels) <= {"cup", "mug"} and list(annotations.files())
    drawn = draw(annotations)
    np.testing.assert_array_equal(drawn.instance, np.where(square_mask(), 0, -1))
    np.testing.assert_array_equal(drawn.semantic, np.where(square_mask(), CLASSES["mug"], -1))
    assert drawn.notes == ["objects of mug"]
    # A depth image of half the size, and of one and a half.
    np.testing.assert_array_equal(draw(annotations, (12, 16)).instance >= 0, square_mask()[::2, ::2])
    large = draw(annotations, (36, 48)).instance >= 0
    assert large[9:24, 6:18].all() and large.sum() == 15 * 12
    # The frame's image may have another resolution than the one that was annotated.
    again = draw(annotations, image_size=(2 * WIDTH, 2 * HEIGHT))
    np.testing.assert_array_equal(again.instance, drawn.instance)
    assert again.notes == drawn.notes


def test_a_stored_mask_may_reach_the_last_row_and_column_and_no_farther(tmp_path):
    shape = {"shape_type": "mask", "mask": png(np.ones((10, 8), dtype=bool))}
    corner = [WIDTH - 8, HEIGHT - 10]
    path = write(tmp_path, labelme({"points": [corner, [WIDTH - 1, HEIGHT - 1]], **shape}))
    found = np.argwhere(draw(open_annotations(path)).instance == 0)
    assert len(found) == 80 and found.min(axis=0).tolist() == corner[::-1]
    write(tmp_path, labelme({"points": [[0, 0], [7, 9]], **shape}))
    assert (draw(open_annotations(path)).instance[:10, :8] == 0).all()
    for x, y in ((corner[0], corner[1] + 1), (corner[0] + 1, corner[1]), (-1, 0), (0, -1)):
        write(tmp_path, labelme({"points": [[x, y], [x + 7, y + 9]], **shape}))
        with pytest.raises(DataFileError, match=rf"has a mask of 8x10 at \({x}, {y}\), outside of 32x24"):
            open_annotations(path)


def test_runs_are_those_of_cocos_own_program():
    # Made by pycocotools 2.0.11 (`encode`) of a ring and one pixel.
    letters = "01P44bL2N2N2N2O00000O2OGLN42LN51KN62JN62JN6:1N2N2N2Nh5"
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = ((x - 14) ** 2 / 90 + (y - 11) ** 2 / 50 < 1) & ~((x - 16) ** 2 + (y - 12) ** 2 < 9)
    mask[0, 0] = True
    runs = read_runs({"size": [HEIGHT, WIDTH], "counts": letters}, (WIDTH, HEIGHT), "here")
    np.testing.assert_array_equal(runs, runs_of(mask))
    # A number may have zeros in front, up to thirteen letters; "Ph0" is 768.
    padded = {"size": [HEIGHT, WIDTH], "counts": 12 * "P" + "0Ph0"}
    assert read_runs(padded, (WIDTH, HEIGHT), "here").tolist() == [0, HEIGHT * WIDTH]
    with pytest.raises(DataFileError, match="here: has the letter '0' in its runs"):
        read_runs({**padded, "counts": "P" + padded["counts"]}, (WIDTH, HEIGHT), "here")


def test_polygons_cover_the_pixels_that_cocos_own_program_gives_them(tmp_path):
    # Pixels by column of pycocotools 2.0.11 (`frPyObjects`, `decode`), whose edges are rounded otherwise.
    expected = [0, 0, 0, 0, 1, 4, 7, 11, 14, 17, 17, 17, 16, 16, 16, 15, 15, 15, 14, 15, 15, 12, 9, 5, 2, 0]
    polygon = [4.2, 3.1, 20.7, 2.4, 25.0, 14.9, 9.6, 20.3]
    found = draw(open_annotations(write(tmp_path, coco({"segmentation": [polygon]})))).instance >= 0
    assert np.abs(found.sum(axis=0)[:26] - expected).max() <= 1 and abs(found.sum() - 253) <= 4


def test_a_circle_has_its_area(tmp_path):
    shape = {"points": [[16, 12], [16, 4]], "shape_type": "circle"}
    found = draw(open_annotations(write(tmp_path, labelme(shape))), (240, 320)).instance >= 0
    np.testing.assert_allclose(found.sum(), np.pi * 80**2, rtol=2e-3)


def test_what_is_small_lies_on_what_is_large(tmp_path):
    small, crowd = [6, 8, 8, 8, 8, 10, 6, 10], np.zeros((HEIGHT, WIDTH), dtype=bool)
    crowd[2:8, 20:26] = True
    path = write(
        tmp_path,
        coco(
            {"segmentation": [small], "category_id": 1},
            {"segmentation": [SQUARE]},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": runs_of(crowd).tolist()}, "iscrowd": 1},
            {"segmentation": [[1.1, 1.1, 1.3, 1.1, 1.3, 1.3]]},
            {"segmentation": [SQUARE]},
            {"segmentation": [[28, 20, 33, 20, 33, 22, 28, 22]]},
            {"segmentation": [[2, 20, 8, 20, 8, 22, 2, 22]], "iscrowd": 1},
        ),
    )
    annotations = open_annotations(path)
    assert annotations.labels == ["cup", "mug"]
    drawn = draw(annotations)
    assert (drawn.instance[8:10, 6:8] == 0).all() and (drawn.semantic[8:10, 6:8] == CLASSES["cup"]).all()
    # Of two that are alike the later one is on top.
    assert drawn.instance[6, 4] == 4 and (drawn.instance == 4).sum() == 80 - 4
    assert (drawn.instance[2:8, 20:26] == -1).all() and (drawn.semantic[2:8, 20:26] == CLASSES["mug"]).all()
    assert (drawn.instance[20:22, 28:] == 5).all()
    assert (drawn.instance[20:22, 2:8] == -1).all() and (drawn.semantic[20:22, 2:8] == CLASSES["mug"]).all()
    assert sorted(drawn.notes) == [
        "crowds of mug, without instances",
        "crowds of mug, without instances",
        "objects of cup",
        "objects of mug",
        "objects of mug",
        "objects smaller than a pixel of depth, left out",
        "objects that others cover wholly, left out",
        "objects that reach out of the image, cut off",
    ]


@pytest.mark.parametrize("kind", ["COCO", "YOLO"])
@pytest.mark.parametrize(
    ("axis", "old", "new", "reaches_out"),
    [
        (0, 4, -0.04, True), (0, 12, WIDTH + 0.04, True), (1, 6, -0.03, True), (1, 16, HEIGHT + 0.03, True),
        # At a thousandth of the width, and just below one of the height.
        (0, 4, -0.032, False), (0, 12, WIDTH + 0.032, False), (1, 6, -0.02, False), (1, 16, HEIGHT + 0.02, False),
    ],
)  # fmt: skip
def test_one_corner_outside_of_one_side_is_told_and_rounding_is_not(kind, axis, old, new, reaches_out, tmp_path):
    polygon = np.reshape(SQUARE, (-1, 2)).astype(float)
    polygon[np.flatnonzero(polygon[:, axis] == old)[0], axis] = new
    polygon = polygon.reshape(-1).tolist()
    if kind == "COCO":
        path = write(tmp_path, coco({"segmentation": [polygon]}))
    else:
        path = yolo_folder(tmp_path, f"1 {fractions(polygon)}")
    notes = draw(open_annotations(path)).notes
    assert sorted(notes) == ["objects of mug"] + ["objects that reach out of the image, cut off"] * reaches_out


def test_an_image_without_objects_is_annotated(tmp_path):
    for annotations in (
        open_annotations(write(tmp_path / "a", coco())),
        open_annotations(write(tmp_path / "b", labelme())),
        open_annotations(yolo_folder(tmp_path / "c", "")),
    ):
        drawn = draw(annotations)
        assert (drawn.instance == -1).all() and (drawn.semantic == -1).all() and not drawn.notes


def test_names_of_a_file_are_the_only_ones(tmp_path):
    path = write(tmp_path, coco({"segmentation": [SQUARE]}))
    assert open_annotations(path, names={0: "mug", 1: "pen", 2: "cup"}).labels == ["mug", "pen", "cup"]
    with pytest.raises(DataFileError, match=r"labels.json \(categories\[0\]\): is named 'mug'.*'cup'"):
        open_annotations(path, names={0: "cup"})
    path = write(tmp_path, labelme({"points": pairs(SQUARE)}), "shapes.json")
    assert open_annotations(path, names={1: "pen", 0: "mug"}).labels == ["pen", "mug"]
    with pytest.raises(DataFileError, match=r"\(shapes\[0\]\): has the label 'mug'.*did you mean 'mugs'"):
        open_annotations(path, names={0: "mugs"})


BAD_COCO = {
    "no lists": ({"images": []}, "has no list 'categories'"),
    "box": (coco({"segmentation": []}), r"annotations\[0\]\): has the segmentation \[\]; expected.*a box is no mask"),
    "outside": (
        coco({"segmentation": [[40, 6, 52, 6, 52, 16]]}),
        r"annotations\[0\]\).*outside of the image: x from 40 to 52.*pixels of 32x24",
    ),
    "odd": (coco({"segmentation": [[4, 6, 12, 6, 12]]}), r"\[0\]\): has a polygon of 5 numbers"),
    "two corners": (coco({"segmentation": [[4, 6, 12, 6]]}), "polygon of 4 numbers; expected x and y of three"),
    "words": (coco({"segmentation": [["a", 6, 12, 6, 1, 1]]}), "no list of numbers"),
    "not finite": (coco({"segmentation": [[float("nan"), 6, 12, 6, 12, 16]]}), "polygon of 6 numbers"),
    "image": (coco({"segmentation": [SQUARE], "image_id": 6}), r"annotations\[0\]\): is of image 6 and category 3"),
    "category": (coco({"segmentation": [SQUARE], "category_id": 9}), "image 5 and category 9"),
    "no name": (coco(categories=[{"id": 1, "name": " "}]), r"categories\[0\]\): is named ''"),
    "name missing": (coco(categories=[{"id": 1}]), r"categories\[0\]\): has name None; expected text"),
    **{
        f"image again as {change}": (
            coco(images=[*coco()["images"], coco()["images"][0] | change]),
            r"images\[1\]\): has id .*expected another of each image",
        )
        for change in ({"id": 6}, {"file_name": "11.jpg"})
    },
    **{
        f"image of {size}": (
            coco(images=[{"id": 5, "file_name": "a", "width": size[0], "height": size[1]}]),
            rf"images\[0\]\): has id 5, name 'a', size \({size[0]}, {size[1]}\)",
        )
        for size in ((0, HEIGHT), (WIDTH, 0))
    },
    "a truth as id": (coco(images=[coco()["images"][0] | {"id": True}]), "has id True; expected a whole number"),
    "no size": (coco(images=[{"id": 5, "file_name": "a"}]), r"images\[0\]\): has width None; expected a whole number"),
    "runs' size": (
        coco({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [768]}}),
        r"runs of size \[32, 24\]; expected \[24, 32\]",
    ),
    "runs' sum": (coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [700, 67]}}), "over 767 pixels"),
    "runs below 0": (coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [776, -8]}}), "over 768 pixels"),
    "runs' letters": (coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0/"}}), "the letter '/'"),
    "runs' last letter": (coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0op"}}), "the letter 'p'"),
    "runs cut short": (coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "0P"}}), "cut short"),
    "runs of words": (coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": ["a"]}}), "runs that are no numbers"),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_malformed_coco_is_refused_with_its_place(name, tmp_path):
    content, message = BAD_COCO[name]
    path = write(tmp_path, content)
    with pytest.raises(DataFileError, match=message) as error:
        open_annotations(path, "coco")
    assert str(error.value).startswith(str(path))


BAD_LABELME = {
    "no shapes": ({"imagePath": "a"}, "has no list 'shapes'"),
    "no size": (labelme(imageWidth=None), r"imageWidth and imageHeight \(None, 24\)"),
    "half a pixel": (labelme(imageHeight=24.5), r"imageWidth and imageHeight \(32, 24.5\)"),
    "no width": (labelme(imageWidth=0), r"imageWidth and imageHeight \(0, 24\)"),
    "no height": (labelme(imageHeight=0), r"imageWidth and imageHeight \(32, 0\)"),
    "no label": (labelme({"points": pairs(SQUARE), "label": " "}), r"shapes\[0\]\): has no label"),
    "line": (labelme({"points": pairs(SQUARE), "shape_type": "linestrip"}), "is a linestrip; expected a polygon"),
    "list as kind": (
        labelme({"points": pairs(SQUARE), "shape_type": ["mask"]}),
        r"is a \['mask'\]; expected a polygon",
    ),
    "list as group": (labelme({"points": pairs(SQUARE), "group_id": [1]}), r"shapes\[0\]\): has the group_id \[1\]"),
    "mapping as group": (
        labelme({"points": pairs(SQUARE), "group_id": {}}),
        r"has the group_id {}; expected a number",
    ),
    "outside": (labelme({"points": pairs([-9, 6, 12, 6, 12, 16])}), r"shapes\[0\]\).*outside of the image: x from -9"),
    "corners": (labelme({"points": pairs(SQUARE), "shape_type": "rectangle"}), r"shape \(4, 2\); expected \[2, 2\]"),
    "words": (labelme({"points": [["a", 1]]}), "points that are no numbers"),
    "mask outside": (
        labelme({"points": [[30, 6], [37, 15]], "shape_type": "mask", "mask": png(square_mask()[6:16, 4:12])}),
        r"mask of 8x10 at \(30, 6\), outside of 32x24",
    ),
    "mask's letters": (labelme({"points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "?"}), "not base64"),
    "mask's picture": (
        labelme({"points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "AAAA"}),
        "no readable pict",
    ),
    "mask in a group": (
        labelme(
            {"points": pairs(SQUARE), "group_id": 1},
            {"points": [[4, 6], [5, 7]], "shape_type": "mask", "mask": png(square_mask()[6:8, 4:6]), "group_id": 1},
        ),
        r"shapes\[0\]\): is a mask in a group",
    ),
}


@pytest.mark.parametrize("name", BAD_LABELME)
def test_malformed_labelme_is_refused_with_its_place(name, tmp_path):
    content, message = BAD_LABELME[name]
    path = write(tmp_path, content)
    with pytest.raises(DataFileError, match=message) as error:
        open_annotations(tmp_path, "labelme")
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.1 0.1", r"10.txt \(line 2\): has a box"),
        ("1 4 6 12 6 12 16", r"10.txt \(line 2\).*outside of the image.*fractions of its sides"),
        ("2 0.1 0.1 0.2 0.1 0.2 0.2", r"\(line 2\): has the class 2; expected one of 0 to 1"),
        ("mug 0.1 0.1 0.2 0.1 0.2 0.2", r"\(line 2\): invalid literal.*expected a class and numbers"),
        ("1 0.1 0.1 O.2 0.1 0.2 0.2", r"\(line 2\): could not convert.*'O.2'; expected a class and numbers"),
        ("1", r"\(line 2\): has a polygon of 0 numbers"),
    ],
)
def test_malformed_yolo_is_refused_with_its_line(line, message, tmp_path):
    with pytest.raises(DataFileError, match=message):
        open_annotations(yolo_folder(tmp_path, f"0 {fractions(SQUARE)}\n{line}\n"))


def test_yolo_needs_names(tmp_path):
    folder = yolo_folder(tmp_path / "a" / "b", f"1 {fractions(SQUARE)}")
    (folder.parent / "data.yaml").unlink()
    with pytest.raises(DataFileError, match=r"has no names of classes \(data.yaml"):
        open_annotations(folder)
    assert open_annotations(folder, names={1: "mug", 0: "cup"}).labels == ["cup", "mug"]
    # They may lie up to two folders above the labels; the nearest ones count.
    (tmp_path / "data.yaml").write_text("names: [far, away]")
    with pytest.raises(DataFileError, match="has no names of classes"):
        open_annotations(folder)
    (tmp_path / "a" / "data.yaml").write_text("names: [pot, pan]")
    assert open_annotations(folder).labels == ["pot", "pan"]
    # A list beside the labels is none of them.
    (folder / "classes.txt").write_text("cup\nmug\n")
    annotations = open_annotations(folder)
    assert annotations.names == ["train/10"] and annotations.labels == ["cup", "mug"]


def test_the_format_is_told_by_what_is_there(tmp_path):
    (tmp_path / "both").mkdir()
    for name in ("a.json", "a.txt"):
        (tmp_path / "both" / name).write_text("{}")
    with pytest.raises(DataFileError, match=r"both .json and .txt"):
        open_annotations(tmp_path / "both")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataFileError, match=r"neither .json nor .txt"):
        open_annotations(tmp_path / "none")
    with pytest.raises(DataFileError, match="no such file or folder"):
        open_annotations(tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="format is 'voc'"):
        open_annotations(tmp_path / "both", "voc")
    for kind in ("labelme", "yolo"):
        (tmp_path / kind).mkdir()
        with pytest.raises(DataFileError, match="has no"):
            open_annotations(tmp_path / kind, kind)


def test_two_files_of_labelme_are_not_of_one_image(tmp_path):
    for name in ("a.json", "b.json"):
        write(tmp_path, labelme(), name)
    with pytest.raises(DataFileError, match=r"b.json: is of the image.*as is .*a.json"):
        open_annotations(tmp_path)


def test_labels_of_another_aspect_are_refused(tmp_path):
    """What a pixel of rounding explains is none: of the annotated image, or of the frame's where that is larger."""
    annotations = open_annotations(write(tmp_path, coco({"segmentation": [SQUARE]})))
    for size in ((32, 23), (32, 25), (31, 24), (33, 24), (640, 460), (640, 500), (16, 12), (16, 11)):
        assert (draw(annotations, image_size=size).instance == 0).sum() == 80
    for width, height in ((32, 22), (32, 26), (30, 24), (34, 24), (640, 459), (640, 501), (16, 10)):
        with pytest.raises(
            DataFileError, match=rf"color/10.jpg\): is of an image of 32x24.*colour is {width}x{height};"
        ):
            draw(annotations, image_size=(width, height))


@pytest.mark.parametrize(("axis", "old", "side"), [(0, 4, 0), (0, 12, WIDTH), (1, 6, 0), (1, 16, HEIGHT)])
def test_a_polygon_may_reach_out_by_a_twentieth_of_the_image(axis, old, side, tmp_path):
    length = (WIDTH, HEIGHT)[axis]
    for share, is_fine in ((0.05, True), (0.051, False)):
        points = np.reshape(SQUARE, (-1, 2)).astype(float)
        points[points[:, axis] == old, axis] = side + share * (length if side else -length)
        path = write(tmp_path, labelme({"points": points.tolist()}))
        if is_fine:
            assert "objects of mug" in draw(open_annotations(path)).notes
        else:
            with pytest.raises(DataFileError, match=r"outside of the image: .* expected pixels of 32x24"):
                open_annotations(path)


def test_an_image_may_be_a_pixel_wide_or_high(tmp_path):
    for width, height in ((1, 3), (3, 1)):
        corners = [0, 0, width, 0, width, height, 0, height]
        size = {"width": width, "height": height}
        content = coco({"segmentation": [corners]}, images=[{"id": 5, "file_name": "a", **size}])
        shapes = labelme({"points": pairs(corners)}, imageWidth=width, imageHeight=height)
        for path in (write(tmp_path, content), write(tmp_path, shapes, "shapes.json")):
            assert (draw(open_annotations(path), (height, width), (width, height)).instance == 0).all()


def test_a_group_of_labelme_is_one_object_at_the_place_of_its_first_shape(tmp_path):
    shapes = [{"points": pairs(SQUARE), "label": label, "group_id": 1} for label in ("mug", "cup", "mug")]
    (image,) = open_annotations(write(tmp_path, labelme(*shapes))).images.values()
    found = [(item.label, len(item.polygons), item.place[-11:]) for item in image.objects]
    assert found == [("mug", 2, "(shapes[0])"), ("cup", 1, "(shapes[1])")]


def test_an_object_of_coco_is_a_crowd_only_where_the_file_says_so(tmp_path):
    content = coco({"segmentation": [SQUARE]})
    del content["annotations"][0]["iscrowd"]
    assert draw(open_annotations(write(tmp_path, content))).notes == ["objects of mug"]


@pytest.fixture(params=[False, True], ids=["listed forwards", "listed backwards"])
def listing(request, monkeypatch):
    """Folders are listed in the order of names, or against it."""
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda *args: iter(sorted(listed(*args), reverse=request.param)))


@pytest.mark.usefixtures("listing")
def test_images_and_labels_of_a_folder_have_an_order(tmp_path):
    """Whatever that of the folder is; a file of labelme that names no image is of the one with its own name."""
    for name, image, labels in (("c", "z.png", "pen cup"), ("a", "", "mug"), ("b", None, "pot bowl ")):
        shapes = [{"points": pairs(SQUARE), "label": f" {label}"} for label in labels.split()]
        write(tmp_path, labelme(*shapes, imagePath=image), f"{name}.json")
    annotations = open_annotations(tmp_path)
    assert annotations.names == ["a", "b", "z.png"]
    assert annotations.labels == ["bowl", "cup", "mug", "pen", "pot"]
    assert [path.name for path in annotations.files()] == ["a.json", "b.json", "c.json"]
    assert [item.label for item in annotations.images["z.png"].objects] == ["pen", "cup"]
    folder = yolo_folder(tmp_path / "yolo", f"1 {fractions(SQUARE)}")
    for name in ("9", "8"):
        (folder / f"{name}.txt").write_text("")
    annotations = open_annotations(folder)
    assert annotations.names == ["8", "9", "train/10"] and annotations.labels == ["cup", "mug"]
    # What they are made of, among them the names.
    assert [path.name for path in annotations.files()] == ["8.txt", "9.txt", "10.txt", "data.yaml"]


def test_resampling_takes_the_pixel_under_the_centre():
    values = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(resample(values, (4, 6)), values.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(resample(values.repeat(3, 0).repeat(3, 1), (2, 3)), values)
