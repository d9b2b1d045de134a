import pytest

from bifusion_hf.labels import SCANNET200_CLASS_NAMES
from bifusion_hf.rooms.catalog import (
    FurnitureModel,
    attribution,
    open_libraries,
    split_of,
)
from bifusion_hf.rooms.classes import (
    AGAINST_WALL,
    FREE,
    RULES,
    classify,
)
from bifusion_hf.rooms.primitives import PRIMITIVES
from bifusion_hf.rooms.programmes import FLOOR_CLUTTER, ON_TOP_OF, PROGRAMMES


NAME = "BlendSwap-CC-0"


def model(name, size=(0.5, 0.5, 0.5), category="Living room", elevation=0.0):
    return FurnitureModel(NAME, f"lib/{name}.obj", name, category, size, elevation, "Ada", None)


def test_file_folder_and_package_hold_the_same_models(library_file, library_deb):
    opened = [open_libraries(source, [NAME]) for source in (library_file, library_file.parent.parent, library_deb)]
    assert opened[0][0].models == opened[1][0].models == opened[2][0].models
    assert open_libraries([library_file], [NAME])[0].models == opened[0][0].models


def test_records_are_in_metres_and_sorted_by_path(library_file):
    box, chair, truck = open_libraries(library_file, [NAME])[0].models
    assert (box.name, box.size, box.elevation, box.creator) == ("Box", (0.3, 0.2, 0.1), 0.05, "Bob")
    assert box.rotation == (0, 0, 1, 0, 1, 0, -1, 0, 0)
    assert (chair.name, chair.rotation) == ("Chair", None)
    assert truck.name == "Frame Hôi" and truck.creator == "unknown"


def test_files_of_a_library_are_found_whatever_their_case(library_file):
    library = open_libraries(library_file, [NAME])[0]
    assert library.read("/LIB/chair/print.png") == library.read("lib/chair/Print.PNG")
    assert library.read("lib/chair/absent.png") is None


@pytest.mark.parametrize(
    ("source", "names", "message"),
    [
        ("file", ["Unknown"], "Unknown.*unknown"),
        ("file", ["Scopia"], "do not hold.*Scopia"),
        ("nowhere.sh3f", [NAME], "no .deb, folder or .sh3f"),
    ],
)
def test_a_missing_library_is_named(library_file, source, names, message):
    with pytest.raises(ValueError, match=message):
        open_libraries(library_file if source == "file" else source, names)


def test_a_file_that_is_no_package_is_refused(tmp_path):
    path = tmp_path / "x.deb"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no Debian package"):
        open_libraries(path, [NAME])


def test_the_split_depends_on_the_name_alone_and_takes_about_its_share():
    splits = [split_of(f"library/model{index}") for index in range(2000)]
    assert 0.27 < splits.count("val") / len(splits) < 0.33
    # The shipped frames rely on this side of these models never changing.
    assert split_of("BlendSwap-CC-0/blendswap-cc-0/armchair/armchair.obj") == "train"
    assert split_of("BlendSwap-CC-0/blendswap-cc-0/sofa2/sofa2.obj") == "val"


def test_every_class_is_one_of_scannet200():
    named = {class_name for class_name, _ in RULES.values()} | {primitive.class_name for primitive in PRIMITIVES}
    for programme in PROGRAMMES.values():
        named |= {*programme.walls, *programme.middle, *programme.hung, *programme.floor}
    named |= {*ON_TOP_OF, *FLOOR_CLUTTER} | {name for _, names in ON_TOP_OF.values() for name in names}
    assert named <= set(SCANNET200_CLASS_NAMES)


def test_what_a_model_is_follows_from_its_name_and_size():
    assert classify(model("Winchester sofa", (2.3, 0.9, 0.8))) == ("couch", AGAINST_WALL)
    assert classify(model("Lamp", (0.4, 0.6, 1.4))) == ("lamp", FREE)
    assert classify(model("Box", (2.1, 0.5, 1.7))) == ("cabinet", AGAINST_WALL)
    assert classify(model("Bread", (0.2, 0.1, 0.1), "Kitchen"))[0] == "object"
    assert classify(model("Truck", (2.9, 21.0, 4.0), "Vehicles")) is None
    assert classify(model("Fence", (1.8, 0.06, 1.0), "Miscellaneous")) is None


def test_attribution_names_creator_library_and_licence():
    assert attribution([model("Sofa")]) == f"- Sofa (lib/Sofa.obj), by Ada, {NAME}, CC0 1.0"
