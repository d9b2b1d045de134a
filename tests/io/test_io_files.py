import pickle

import numpy as np
import pytest

from bifusion_hf.io.files import (
    DataFileError,
    parse_floats,
    path_inside,
    read_bytes,
    read_json,
    read_text,
)


def test_the_error_names_the_file_and_survives_pickling(tmp_path):
    error = DataFileError(tmp_path / "a", "is broken")
    assert isinstance(error, ValueError)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == f"{tmp_path / 'a'}: is broken"


def test_files_that_cannot_be_read(tmp_path):
    for path, message in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(DataFileError, match=message):
            read_bytes(path)
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    with pytest.raises(DataFileError, match="not UTF-8"):
        read_text(tmp_path / "a")
    (tmp_path / "a").write_bytes(b'{"a": [1, 2]}')
    assert read_json(tmp_path / "a") == {"a": [1, 2]}


def test_numbers():
    np.testing.assert_array_equal(parse_floats("1 -2.5\n nan -inf", (2, 2), "f"), [[1, -2.5], [np.nan, -np.inf]])
    with pytest.raises(DataFileError, match="f: has 3 numbers; expected 2x2"):
        parse_floats("1 2 3", (2, 2), "f")
    with pytest.raises(DataFileError, match="f: .*'x'"):
        parse_floats("1 2 3 x", (2, 2), "f")


def test_paths(tmp_path):
    assert path_inside(tmp_path, "a/b.bin", "list") == tmp_path / "a" / "b.bin"
    assert path_inside(tmp_path, "./a\\b.bin", "list") == tmp_path / "a" / "b.bin"
    for name in ("../a", "a/../../b", "/a", "\\a", "C:/a", "", "a\0", 3, None):
        with pytest.raises(DataFileError, match="list"):
            path_inside(tmp_path, name, "list")
