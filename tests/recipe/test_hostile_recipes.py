"""Recipes that are damaged, or made to do harm."""

import pytest

from bifusion_hf.recipe.reading import MAX_VALUES, load_arguments


def refused(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_arguments(path)
    assert str(path) in str(error.value) and len(str(error.value)) < 1000


def test_aliases_of_aliases_are_counted_not_unfolded(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    refused(tmp_path, "\n".join(lines), f"values once its aliases are unfolded; expected at most {MAX_VALUES}")


def test_a_value_that_holds_itself(tmp_path):
    refused(tmp_path, "data: &a {train: *a}", "a value holds itself")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {preset: tiny", "cannot be read as YAML"),
        ("model: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
        ("model:\n\tpreset: tiny", "cannot be read as YAML"),
        ("[" * 3000, "cannot be read as YAML"),
        (b"\xff\xfe\x00", "no UTF-8 text"),
        ("just words", "expected a mapping of sections"),
    ],
)
def test_what_is_no_recipe(tmp_path, content, message):
    refused(tmp_path, content, message)


def test_an_honest_alias_and_a_byte_order_mark_are_fine(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes("\ufeffoptimizer: {learning_rate: &rate 0.003, weight_decay: *rate}\n".encode())
    optimizer = load_arguments(path).optimizer
    assert optimizer.learning_rate == optimizer.weight_decay == 0.003


def test_an_override_that_is_no_yaml():
    with pytest.raises(ValueError, match=r"--training.epochs '\[1'.*cannot be read as YAML"):
        load_arguments(None, ["--training.epochs", "[1"])
