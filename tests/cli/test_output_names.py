import json

import pytest

from bifusion_hf.cli.output_names import name_for_input, unique_names


@pytest.mark.parametrize(
    ("names", "unique"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        # A name that is there already is nobody else's.
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        ([], []),
    ],
)
def test_equal_names_get_a_number(names, unique):
    assert unique_names(names) == unique


def test_results_of_another_input_are_left_alone(tmp_path):
    assert name_for_input(tmp_path, "scene 1/frame", "one") == "scene_1_frame"
    (tmp_path / "frame.json").write_text(json.dumps({"input": "one"}))
    assert name_for_input(tmp_path, "frame", "one") == "frame"
    assert name_for_input(tmp_path, "frame", "two") == "frame-2"
    (tmp_path / "frame-2.json").write_text(json.dumps({"input": "two"}))
    assert [name_for_input(tmp_path, "frame", name) for name in ("one", "two", "three")] == [
        "frame",
        "frame-2",
        "frame-3",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"fx": 1}'])
def test_files_of_others_are_left_alone(tmp_path, text):
    (tmp_path / "frame.json").write_text(text)
    assert name_for_input(tmp_path, "frame", "one") == "frame-2"
