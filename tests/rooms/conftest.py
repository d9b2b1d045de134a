"""A furniture library small enough to be written by the tests, in the three forms a library comes in."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from bifusion_hf.rooms.catalog import split_of
from bifusion_hf.rooms.meshes import merge
from bifusion_hf.rooms.solids import slab, tube
from bifusion_hf.rooms.wares import vessel


CATALOG = """name=Test library
name#1=Chair
category#1=Living room
model#1=/lib/chair/chair.obj
width#1=50
depth#1=40
height#1=90
creator#1=Ada
name#2=Box
category#2=Miscellaneous
model#2=/lib/box/box.obj
width#2=30
depth#2=20
height#2=10
elevation#2=5
creator#2=Bob
modelRotation#2=0 0 1 0 1 0 -1 0 0
name#3=Frame H\\u00f4i
category#3=Vehicles
model#3=/lib/truck/truck.obj
width#3=900
depth#3=200
height#3=300
"""
# A cuboid of 2 x 1 x 4 (OBJ axes: x right, y up, z towards the viewer) with quads, a textured front (+z) and
# negative indices, and a transparent triangle that a reader has to leave out.
CUBOID = """mtllib cuboid.mtl
v 0 0 0
v 2 0 0
v 2 1 0
v 0 1 0
v 0 0 4
v 2 0 4
v 2 1 4
v 0 1 4
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl plain
f 1 4 3 2
f 1 2 6 5
f 4 8 7 3
f 1 5 8 4
f 2 3 7 6
usemtl printed
f -4/1 -3/2 -2/3 -1/4
usemtl glass
f 1 2 7
"""
MATERIALS = """newmtl plain
Kd 0.5 0.25 0.0
newmtl printed
Kd 0 0 0
map_Kd -s 1 1 1 print.png
newmtl glass
Kd 1 1 1
d 0.1
"""


def library_bytes(catalog: str, models: dict[str, str]) -> bytes:
    """A library of a catalogue and the OBJ text of its models, which share their materials."""
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2] = 255, 0, 0
    picture[2:] = 0, 0, 255
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", catalog)
        for name, text in models.items():
            archive.writestr(f"lib/{name}/{name}.obj", text)
            archive.writestr(f"lib/{name}/cuboid.mtl", MATERIALS)
            archive.writestr(f"lib/{name}/Print.PNG", png.getvalue())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def library_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("furniture") / "nested" / "BlendSwap-CC-0.sh3f"
    path.parent.mkdir()
    path.write_bytes(library_bytes(CATALOG, dict.fromkeys(("chair", "box", "truck"), CUBOID)))
    return path


@pytest.fixture(scope="session")
def clutter_library(tmp_path_factory):
    """Small things with overhangs and hollows, and a stool: models of the train split."""
    shapes = {
        "arch": merge([slab(0.3, 0.1, 0.06, np.ones(3), (0, 0, 0.14))] + [
            slab(0.05, 0.1, 0.15, np.ones(3), (side, 0, 0)) for side in (-0.125, 0.125)
        ]),
        "dish": merge(vessel(np.array([[1e-5, 0], [0.05, 0], [0.12, 0.07]]), 0.006, np.ones(3))),
        "hook": tube(np.array([[0, 0, 0], [0, 0, 0.12], [0.06, 0, 0.16], [0.1, 0, 0.1]]), 0.018, np.ones(3), 10),
        "stool": merge([slab(0.4, 0.4, 0.05, np.ones(3), (0, 0, 0.4))] + [
            slab(0.05, 0.05, 0.42, np.ones(3), (x, y, 0)) for x in (-0.17, 0.17) for y in (-0.17, 0.17)
        ]),
    }  # fmt: skip
    catalog, models = "name=Clutter\n", {}
    for number, (kind, mesh) in enumerate(shapes.items(), 1):
        name = next(
            name for name in (f"{kind}{index}" for index in range(100))
            if split_of(f"BlendSwap-CC-0/lib/{name}/{name}.obj") == "train"
        )  # fmt: skip
        size = 100 * mesh.size
        catalog += f"name#{number}={kind.title()}\ncategory#{number}=Miscellaneous\ncreator#{number}=Eve\n"
        catalog += f"model#{number}=/lib/{name}/{name}.obj\n"
        catalog += "".join(
            f"{key}#{number}={value}\n" for key, value in zip(("width", "depth", "height"), size, strict=True)
        )
        # Our x, y, z are the x, -z, y of OBJ.
        corners = mesh.triangles.reshape(-1, 3)[:, [0, 2, 1]] * [1, 1, -1]
        text = "mtllib cuboid.mtl\nusemtl plain\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in corners)
        models[name] = text + "".join(f"f {i + 1} {i + 2} {i + 3}\n" for i in range(0, len(corners), 3))
    path = tmp_path_factory.mktemp("clutter") / "BlendSwap-CC-0.sh3f"
    path.write_bytes(library_bytes(catalog, models))
    return path


@pytest.fixture(scope="session")
def library_deb(tmp_path_factory, library_file):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        archive.add(library_file, arcname="./usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f")

    def member(name: str, content: bytes) -> bytes:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    path = tmp_path_factory.mktemp("deb") / "furniture.deb"
    path.write_bytes(
        b"!<arch>\n"
        + member("debian-binary", b"2.0")
        + member("control.tar.xz", b"")
        + member("data.tar.xz", data.getvalue())
    )
    return path
