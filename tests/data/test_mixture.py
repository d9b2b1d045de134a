from collections import Counter

import datasets
import pytest

from bifusion_hf.data import mixture as mixture_module
from bifusion_hf.data.mixture import Mixture, load_rows


def make(sizes, weights):
    sources = {name: [f"{name}{row}" for row in range(size)] for name, size in sizes.items()}
    return Mixture(sources, weights)


def test_rows_of_the_sources_follow_one_another():
    mixture = make({"a": 3, "b": 2}, {"b": 1, "a": 5})
    assert list(mixture) == ["a0", "a1", "a2", "b0", "b1"] and len(mixture) == 5
    assert mixture[-1] == "b1" and mixture.place(3) == "row 0 of b" and mixture.place(2) == "row 2 of a"
    with pytest.raises(IndexError):
        mixture[5]


@pytest.mark.parametrize(
    ("sizes", "weights", "shares"),
    [
        ({"a": 30, "b": 30}, {"a": 1, "b": 2}, [20, 40]),
        ({"a": 90, "b": 10}, {"a": 1.0, "b": 1.0}, [50, 50]),
        ({"a": 4, "b": 3, "c": 3}, {"a": 1, "b": 1, "c": 1}, [4, 3, 3]),
        # What is nearest to the next whole number gets the frames that are left: 1.5, 2.7, 5.8 of ten.
        ({"a": 4, "b": 3, "c": 3}, {"a": 15, "b": 27, "c": 58}, [1, 3, 6]),
        ({"a": 4, "b": 3, "c": 3}, {"a": 25, "b": 17, "c": 58}, [2, 2, 6]),
        ({"a": 7}, {"a": 0.2}, [7]),
    ],
)
def test_shares_of_an_epoch_follow_the_weights_and_add_up(sizes, weights, shares):
    mixture = make(sizes, weights)
    assert list(mixture.shares().values()) == shares
    for epoch in range(3):
        found = Counter(mixture[row][0] for _, row in mixture.epoch_keys(0, epoch))
        assert [found[name] for name in sizes] == shares


def test_every_row_of_a_source_comes_equally_often_and_never_twice_with_one_key():
    mixture = make({"a": 13, "b": 4}, {"a": 1, "b": 2})
    assert mixture.shares() == {"a": 6, "b": 11}
    keys = [key for epoch in range(26) for key in mixture.epoch_keys(5, epoch)]
    assert len(set(keys)) == len(keys) == 26 * 17
    counts = Counter(row for _, row in keys)
    # 26 epochs take 12 whole passes over a, and 71 and a half over b.
    assert {counts[row] for row in range(13)} == {12}
    assert {counts[row] for row in range(13, 17)} == {71, 72}


def test_an_epoch_is_a_function_of_seed_and_epoch():
    sizes, weights = {"a": 9, "b": 5}, {"a": 1, "b": 3}
    keys = make(sizes, weights).epoch_keys(1, 4)
    other = make(sizes, weights)
    for epoch in (7, 0, 4):
        other.epoch_keys(1, epoch)
    assert other.epoch_keys(1, 4) == keys and {type(part) for key in keys for part in key} == {int}
    assert sorted(other.epoch_keys(2, 4)) != sorted(keys) != sorted(other.epoch_keys(1, 5))
    # The same in every process and in the next year.
    assert keys == [
        (1, 7),
        (2, 5),
        (8, 13),
        (2, 8),
        (8, 11),
        (9, 9),
        (8, 10),
        (9, 10),
        (9, 11),
        (9, 12),
        (8, 12),
        (1, 0),
        (9, 13),
        (8, 9),
    ]
    # Sources are interleaved, not one after another.
    assert [other[row][0] for _, row in keys] != sorted(other[row][0] for _, row in keys)


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ({"a": 2, "b": 0}, {"a": 1, "b": 1}, "b has no rows"),
        ({"a": 2, "b": 2}, {"a": 1, "b": 0}, "weight of b is 0; expected a positive number"),
        ({"a": 2, "b": 2}, {"a": 1, "b": float("nan")}, "weight of b is nan"),
        ({"a": 2}, {"a": 1, "b": 1}, r"weights are of \['a', 'b'\]; expected one for each source of \['a'\]"),
        ({}, {}, "weights are of"),
    ],
)
def test_malformed_mixtures_are_refused(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        make(sizes, weights)


def test_load_rows_reads_one_source_or_several(monkeypatch):
    tables = {name: datasets.Dataset.from_dict({"row": list(range(4))}) for name in ("x", "y")}
    monkeypatch.setattr(mixture_module, "load_frames", lambda source, split: tables[source] if split == "s" else None)
    assert load_rows("x", "s") is tables["x"]
    rows = load_rows({"x": 1, "y": 2}, "s", lambda rows: rows.select(range(3)))
    assert [row["row"] for row in rows] == [0, 1, 2, 0, 1, 2] and rows.weights == {"x": 1.0, "y": 2.0}
