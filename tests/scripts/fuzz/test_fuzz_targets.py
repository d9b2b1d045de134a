import io
import zipfile

import numpy as np
import pytest

from scripts.fuzz.changes import change_safetensors, change_yaml, change_zip
from scripts.fuzz.runner import FAILURES, OK, make_input, try_input
from scripts.fuzz.targets import all_targets


TARGETS = all_targets()
# Inputs that once ended in an error of a library, or worse: by seed and kind.
EARLIER_FAILURES = {
    1: {
        "depth.npz": (4, 56, 62),
        "camera.npy": (29, 55, 62),
        "camera.yaml": (14,),
        "recipe.yaml": (4, 6, 15, 17, 18, 20, 53, 57, 61),
        "r3d": (3, 52, 67),
        "sens": (22, 43),
        "rows": (0, 10, 12, 18, 20, 25, 33, 46, 53, 57),
        "pickled weights": (31, 65),
        "shards": (42,),
        "checkpoint": (4, 6, 12, 16, 20, 33, 59, 63, 64, 66, 67),
        "scene": (6,),
        "arrays": (2, 53, 69),
    },
    2: {
        "camera.json": (6, 110),
        "redwood": (10,),
        "r3d": (18, 102, 282, 356, 378, 589),
        "rows": (187,),
        "checkpoint": (64, 111, 120),
        "safetensors": (116,),
        "arrays": (64,),
    },
    3: {"r3d": (7,)},
}


@pytest.fixture(params=TARGETS)
def target(request):
    if request.param == "r3d":
        pytest.importorskip("lzfse")
    return TARGETS[request.param]


def ends(target, folder, seed, number):
    folder.mkdir()
    make_input(target, seed, number, folder)
    return try_input(target, folder)


def test_without_damage_the_input_is_read(target, tmp_path):
    """Else every refusal would be for another reason than the damage."""
    target.write(tmp_path)
    assert try_input(target, tmp_path) == (OK, "")


def test_damage_depends_on_seed_and_number_alone(target, tmp_path):
    def content(name, seed, number):
        folder = tmp_path / name
        folder.mkdir()
        make_input(target, seed, number, folder)
        # Archives hold the time at which they were written.
        return {path.relative_to(folder): len(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}

    assert content("a", 3, 5) == content("b", 3, 5)
    assert any(content(f"c{number}", 3, number) != content(f"d{number}", 4, number) for number in range(8))


def test_damaged_inputs_are_read_or_refused_by_name(target, tmp_path):
    inputs = [(11, number) for number in range(4)]
    inputs += [(seed, number) for seed, kinds in EARLIER_FAILURES.items() for number in kinds.get(target.name, ())]
    for seed, number in inputs:
        outcome, error = ends(target, tmp_path / f"fuzzed_input_{seed}_{number}", seed, number)
        assert outcome not in FAILURES, (seed, number, error)


def test_an_input_that_is_damaged_twice_is_made_at_once():
    """Nine levels of aliases are a few lines; a changed copy of what they stand for would be 10^9 values."""
    rng = np.random.default_rng(0)
    lines = ["a0: &a0 [x, x, x]", *(f"a{level}: &a{level} [{f'*a{level - 1}, ' * 9}]" for level in range(1, 10))]
    bomb = "\n".join(lines).encode()
    for _ in range(50):
        changed = change_yaml(bomb, rng)
        assert changed is None or len(changed) < 10**6


def test_a_file_that_a_first_damage_left_empty_is_damaged_byte_by_byte():
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    for change, content in ((change_zip, buffer.getvalue()), (change_safetensors, b""), (change_safetensors, b"1234")):
        assert change(content, np.random.default_rng(0)) is None
