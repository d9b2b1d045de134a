import numpy as np
import pytest

from bifusion_hf.rooms.catalog import open_libraries
from bifusion_hf.rooms.layout import centered
from bifusion_hf.rooms.meshes import (
    box_mesh,
    face_normals,
    load_model,
    merge,
    read_model,
)
from bifusion_hf.rooms.primitives import PRIMITIVES
from bifusion_hf.rooms.support import support_map
from bifusion_hf.rooms.textures import KINDS, make_texture, pick_texture


def read(library_file, index):
    library = open_libraries(library_file, ["BlendSwap-CC-0"])[0]
    return library, library.models[index]


def outward_share(mesh):
    center = mesh.triangles.reshape(-1, 3).mean(axis=0)
    outward = ((mesh.triangles.mean(axis=1) - center) * face_normals(mesh.triangles)).sum(axis=1)
    return (outward > 0).mean()


def test_a_model_is_fitted_to_the_catalogue(library_file):
    mesh = read_model(*read(library_file, 1))
    np.testing.assert_allclose(mesh.bounds, [[-0.25, -0.2, 0], [0.25, 0.2, 0.9]], atol=1e-6)
    assert len(mesh.triangles) == 12  # six quads; the glass is left out
    assert outward_share(mesh) == 1


def test_the_printed_side_faces_the_front_the_right_way_up(library_file):
    mesh = read_model(*read(library_file, 1))
    printed = mesh.texture_index[mesh.material] >= 0
    assert printed.sum() == 2
    np.testing.assert_allclose(mesh.triangles[printed][..., 1], -0.2, atol=1e-6)
    # v grows with z and u with x: the upper half of the picture (red) is on top, for a viewer in front.
    corners, uv = mesh.triangles[printed].reshape(-1, 3), mesh.uv[printed].reshape(-1, 2)
    np.testing.assert_allclose(uv[:, 0], corners[:, 0] / 0.5 + 0.5, atol=1e-5)
    np.testing.assert_allclose(uv[:, 1], corners[:, 2] / 0.9, atol=1e-5)
    assert mesh.textures[0][0, 0].tolist() == [255, 0, 0]
    # A picture replaces the diffuse colour; elsewhere the colour is the file's.
    np.testing.assert_allclose(mesh.colors[mesh.material[printed][0]], 1)
    np.testing.assert_allclose(mesh.colors[mesh.material[~printed][0]], [0.5, 0.25, 0.02])


def test_the_catalogues_rotation_comes_before_the_fit(library_file):
    mesh = read_model(*read(library_file, 0))
    np.testing.assert_allclose(mesh.size, [0.3, 0.2, 0.1], atol=1e-6)
    printed = mesh.texture_index[mesh.material] >= 0
    # The rotation sends +z of the file to +x: the printed side looks right.
    np.testing.assert_allclose(mesh.triangles[printed][..., 0], 0.15, atol=1e-6)


def test_a_cached_model_is_the_same(library_file, tmp_path):
    library, model = read(library_file, 1)
    first, second = load_model(library, model, tmp_path), load_model(library, model, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for name in ("triangles", "uv", "material", "colors", "texture_index"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.textures[0], second.textures[0])
    np.testing.assert_allclose(first.normals, read_model(library, model).normals, atol=1e-3)


def test_merged_meshes_keep_their_materials():
    picture = np.full((2, 2, 3), 7, np.uint8)
    plain = box_mesh(np.zeros(3), np.ones(3), [1, 0, 0])
    printed = box_mesh(np.zeros(3), np.ones(3), [0, 1, 0], picture)
    mesh = merge([printed, plain, printed])
    assert mesh.colors[mesh.material[[0, 12, 24]]].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert mesh.texture_index[mesh.material[[0, 12, 24]]].tolist() == [0, -1, 1]
    assert outward_share(plain) == 1


@pytest.mark.parametrize("primitive", PRIMITIVES, ids=lambda p: f"{p.class_name}-{p.placement}")
def test_parametric_furniture_is_sound_and_repeatable(primitive):
    meshes = [primitive.make(np.random.default_rng(seed), "train") for seed in (0, 0, 1)]
    np.testing.assert_array_equal(meshes[0].triangles, meshes[1].triangles)
    assert meshes[0].triangles.shape != meshes[2].triangles.shape or not np.allclose(
        meshes[0].triangles, meshes[2].triangles
    )
    for mesh in meshes:
        assert np.isfinite(mesh.triangles).all() and (mesh.size > 0).all() and mesh.size.max() < 3
        assert mesh.bounds[0, 2] == pytest.approx(0, abs=1e-6)
        assert mesh.material.max() < len(mesh.colors) and mesh.texture_index.max() < len(mesh.textures)
        assert (mesh.colors >= 0).all() and (mesh.colors <= 1).all()


def test_textures_of_the_splits_are_different_and_repeatable():
    for kind in KINDS:
        texture = make_texture(f"{kind}/0")
        assert texture.image.dtype == np.uint8 and texture.image.ndim == 3 and texture.tile > 0
        make_texture.cache_clear()
        np.testing.assert_array_equal(texture.image, make_texture(f"{kind}/0").image)
    rng = np.random.default_rng(0)
    picked = {
        split: {pick_texture(rng, split, "cover").image.tobytes() for _ in range(60)} for split in ("train", "val")
    }
    assert picked["train"] and picked["val"] and not picked["train"] & picked["val"]


def test_support_is_found_on_top_and_on_open_boards_but_not_inside():
    wall = np.array([0.5, 0.5, 0.5])
    boards = [box_mesh(np.array([-0.5, -0.2, z]), np.array([0.5, 0.2, z + 0.02]), wall) for z in (0.4, 0.8)]
    open_map = support_map(centered(merge(boards)))
    usable = [
        np.nanmedian(h[c > 0]) for h, c in zip(open_map.heights, open_map.clearance, strict=True) if (c > 0).any()
    ]
    np.testing.assert_allclose(usable, [0.42, 0.02], atol=1e-3)
    lower = open_map.clearance[open_map.clearance > 0]
    assert np.isinf(lower).any() and lower.min() == pytest.approx(0.38, abs=5e-3)
    closed = support_map(box_mesh(np.array([-0.5, -0.2, 0.0]), np.array([0.5, 0.2, 0.8]), wall))
    assert (closed.clearance[0] > 0).all() and (closed.clearance[1:] == 0).all()
