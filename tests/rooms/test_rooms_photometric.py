"""The classes that only fine texture tells apart: alike in all else, and told apart by it."""

import json

import numpy as np
import pytest
from scipy import ndimage

from bifusion_hf.rooms.catalog import split_of
from bifusion_hf.rooms.dataset import build_dataset
from bifusion_hf.rooms.generate import RoomGenerator, RoomSettings
from bifusion_hf.rooms.inventory import Inventory
from bifusion_hf.rooms.photometric import (
    FAMILIES,
    KINDS,
    PHOTOMETRIC_CLASSES,
    PRINTS,
    make_print,
    pick_print,
)
from bifusion_hf.rooms.textures import Texture


def pixels_of(texture, metres: float) -> int:
    return round(metres / texture.tile * texture.image.shape[0])


@pytest.mark.parametrize("number", range(0, PRINTS, 13))
def test_prints_of_one_number_agree_in_colours_shares_and_size(number):
    prints = {kind: make_print(kind, number) for kind in KINDS}
    means = np.stack([texture.image.mean(axis=(0, 1)) for texture in prints.values()])
    deviations = np.stack([texture.image.std(axis=(0, 1)) for texture in prints.values()])
    assert len({texture.tile for texture in prints.values()}) == 1
    assert np.ptp(means, axis=0).max() < 0.6  # of 255
    assert np.ptp(deviations, axis=0).max() < 1.0
    for texture in prints.values():
        assert 0.1 < texture.tile < 0.16


@pytest.mark.parametrize("number", range(0, PRINTS, 13))
def test_prints_tell_their_kind_by_the_direction_in_which_they_change(number):
    # Four periods a picture: along the rows of pixels, the columns, or both at once.
    expected = {"rows": [True, False, False], "columns": [False, True, False], "diagonals": [False, False, True]}
    expected["dots"] = [True, True, False]
    for kind in KINDS:
        picture = make_print(kind, number).image.mean(axis=2)
        spectrum = np.abs(np.fft.fft2(picture - picture.mean()))
        strength = np.array([spectrum[4, 0], spectrum[0, 4], max(spectrum[4, 4], spectrum[4, -4])]) / spectrum.max()
        assert (strength > 0.8).tolist() == expected[kind]
        assert (strength[~np.array(expected[kind])] < 0.5).all()


@pytest.mark.parametrize("number", range(0, PRINTS, 13))
def test_prints_fade_into_the_same_colour_at_the_scale_of_a_voxel(number):
    """Blurred by what a voxel of 4 cm and the points around it average, next to nothing of the pattern is left."""
    for kind in KINDS:
        texture = make_print(kind, number)
        picture = texture.image.astype(np.float64).mean(axis=2)
        blurred = ndimage.gaussian_filter(picture, pixels_of(texture, 0.02), mode="wrap")
        assert np.abs(blurred - picture.mean()).max() < 0.06 * picture.std() + 0.5
    # In one voxel the mean over a box of 4 cm: the same spread for rows and for columns.
    spread = {}
    for kind in ("rows", "columns"):
        texture = make_print(kind, number)
        size = pixels_of(texture, 0.04)
        spread[kind] = ndimage.uniform_filter(texture.image.astype(np.float64).mean(axis=2), size, mode="wrap").std()
    assert spread["rows"] == pytest.approx(spread["columns"], rel=0.05, abs=0.3)


def test_the_splits_have_other_prints_and_every_kind_the_same_ones(monkeypatch):
    asked = []
    monkeypatch.setattr("bifusion_hf.rooms.photometric.make_print", lambda kind, number: asked.append((kind, number)))
    for split in ("train", "val"):
        for kind in KINDS:
            rng = np.random.default_rng(0)
            for _ in range(2000):
                pick_print(rng, split, kind)
    numbers = {kind: {number for name, number in asked if name == kind} for kind in KINDS}
    assert all(found == set(range(PRINTS)) for found in numbers.values())
    of_split = [{number for _, number in asked if split_of(f"texture/print/{number}") == s} for s in ("train", "val")]
    assert min(map(len, of_split)) >= 10 and not of_split[0] & of_split[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_members_of_a_family_are_alike_in_all_but_the_print(family):
    """The same random numbers give the same triangles, normals and plain colours for every class."""
    made = [primitive.make(np.random.default_rng(7), "train") for primitive in FAMILIES[family].primitives()]
    assert len(made) == len(FAMILIES[family].kinds) == len(KINDS)
    assert set(FAMILIES[family].kinds.values()) == set(KINDS)
    for mesh in made[1:]:
        np.testing.assert_array_equal(mesh.triangles, made[0].triangles)
        np.testing.assert_array_equal(mesh.normals, made[0].normals)
        np.testing.assert_array_equal(mesh.uv, made[0].uv)
        np.testing.assert_allclose(mesh.colors, made[0].colors, atol=0.003)
    pictures = [mesh.textures[-1] if mesh.textures else None for mesh in made]
    assert all(a is not None for a in pictures)
    assert not np.array_equal(pictures[0], pictures[1])


def test_photometric_classes_come_from_their_families_alone(tmp_path, monkeypatch):
    names = [name for names in PHOTOMETRIC_CLASSES.values() for name in names]
    assert len(names) == len(set(names)) == len(FAMILIES) * len(KINDS)
    ordinary, photometric = Inventory([], "train", tmp_path), Inventory([], "train", tmp_path, photometric=True)
    assert {name for name, _ in ordinary.primitives} & set(names)
    assert not {name for name, _ in photometric.primitives} & set(names)
    assert not ordinary.families
    plain = Texture(np.zeros((4, 4, 3), np.uint8), 1.0)
    monkeypatch.setattr("bifusion_hf.rooms.photometric.make_print", lambda kind, number: plain)
    counts = {}
    rng = np.random.default_rng(0)
    for _ in range(200):
        name, mesh, _ = photometric.pick_printed(rng, "block")
        counts[name] = counts.get(name, 0) + 1
        assert mesh.size.min() > 0.2
    assert set(counts) == set(PHOTOMETRIC_CLASSES["block"]) and min(counts.values()) > 25


def test_a_data_set_names_its_photometric_classes_and_holds_them(tmp_path):
    settings = RoomSettings((), (), str(tmp_path / "cache"), width=80, height=60, views=2, photometric=True)
    summary = build_dataset(tmp_path / "rooms", settings, {"train": 4}, workers=1, progress=False)
    stored = json.loads((tmp_path / "rooms" / "rooms.json").read_text())
    assert stored["photometric"] == summary["photometric"] == PHOTOMETRIC_CLASSES
    found = set(summary["classes"]["train"])
    assert all(found & set(names) for names in PHOTOMETRIC_CLASSES.values())
    card = (tmp_path / "rooms" / "README.md").read_text()
    assert "only fine texture tells" in card and all(name in card for name in PHOTOMETRIC_CLASSES["block"])
    # The same folder cannot go on as an ordinary data set.
    with pytest.raises(ValueError, match="photometric"):
        ordinary = RoomSettings((), (), str(tmp_path / "cache"), width=80, height=60, views=2)
        build_dataset(tmp_path / "rooms", ordinary, {"train": 4}, workers=1, progress=False)


def test_ordinary_rooms_have_no_printed_families(tmp_path):
    generator = RoomGenerator(RoomSettings((), (), str(tmp_path), width=80, height=60))
    assert generator.settings.content()["photometric"] == {}
    assert not generator.inventories["train"].families
