import pytest

from bifusion_hf.batch import check_settings, cut, shard_names
from bifusion_hf.io.storage import Folder


def test_names_and_pieces():
    assert cut(range(7), 3) == [range(0, 3), range(3, 6), range(6, 7)] and cut([], 3) == []
    assert cut("ab", 1) == ["a", "b"] and cut("ab", 2) == cut("ab", 3) == ["ab"]
    assert shard_names("val", 2) == ["val-00000-of-00002", "val-00001-of-00002"]
    with pytest.raises(ValueError, match="size of a shard is 0"):
        cut([1], 0)


def check(folder, **settings):
    check_settings(Folder(folder), "settings.json", settings, "a data set", "data")


def test_a_work_goes_on_with_its_own_settings_alone(tmp_path):
    check(tmp_path, size=(4, 3), split="val")
    check(tmp_path, size=[4, 3], split="val")
    for other in ({"size": [4, 3]}, {"size": [4, 3], "split": "val", "seed": None, "new": 1}):
        with pytest.raises(ValueError, match="holds a data set that was begun with another (split|new);"):
            check(tmp_path, **other)
    # All that differs is named, in one order.
    with pytest.raises(ValueError, match="begun with another colour, seed, size, split; expected the same settings"):
        check(tmp_path, split="train", size=[3, 4], seed=1, colour="red")
    # What it goes on with is what it was begun with.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val-00000-of-00002.parquet").touch()
    check(tmp_path, size=[4, 3], split="val")


def test_a_folder_with_files_of_something_else_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "other.parquet").touch()
    with pytest.raises(ValueError, match="data holds other files; expected an empty folder"):
        check(tmp_path, split="val")
    assert not (tmp_path / "settings.json").exists()
