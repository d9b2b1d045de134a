import collections
import os
import pathlib
import pickle
import sys
import time
import types
import typing

import numpy as np
import pytest
import torch

from bifusion_hf.io.files import DataFileError
from bifusion_hf.io.safe_pickle import IgnoredObject, load_checkpoint, load_pickle


VALUE = {
    "numbers": [1, -2, 300, 70000, 2**40, 2**70, 2.5, float("inf"), None, True, False],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "sets": [{1, 2}, frozenset([3]), set()],
    "text": ["", "ü", "x" * 300, "y" * 70000],
    "bytes": [b"", b"ab\xff", b"z" * 300],
    "nested": {"a": {"b": [[[{}]]]}},
    7: "number as key",
}
ARRAYS = {
    "pose": np.arange(16.0).reshape(4, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.int64),
    "scalar": np.float32(3.5),
    "zero dimensions": np.array(4),
    "view": np.arange(24).reshape(4, 6)[::2, ::3],
}


def write(tmp_path, value, protocol=2):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_reads_back_equal(tmp_path, protocol):
    assert load_pickle(write(tmp_path, VALUE, protocol)) == VALUE
    shared = [1]
    first, second = load_pickle(write(tmp_path, [shared, shared], protocol))
    assert first is second
    ordered = collections.OrderedDict(b=1, a=2)
    assert list(load_pickle(write(tmp_path, ordered, protocol)).items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_read_back_equal(tmp_path, protocol):
    found = load_pickle(write(tmp_path, ARRAYS, protocol))
    for name, expected in ARRAYS.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
        assert found[name].dtype == expected.dtype.newbyteorder("=")
        assert found[name].shape == expected.shape


def test_numpy_1_and_2_names(tmp_path):
    path = write(tmp_path, np.arange(3))
    data = path.read_bytes()
    assert b"numpy._core.multiarray" in data
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(load_pickle(path), np.arange(3))


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    for value in (
        Runs(os.system, f"touch {mark}"),
        Runs(eval, f"open({str(mark)!r}, 'w')"),
        Runs(getattr, "a", "join"),
        Runs(np.save, str(mark), np.zeros(3)),
        Runs(bytearray, 2**40),
    ):
        path = write(tmp_path, {"data_list": [value]}, protocol)
        with pytest.raises(DataFileError, match=r"a\.pkl: is no readable pickle of plain data .*object of"):
            load_pickle(path)
    assert not mark.exists()
    assert not (tmp_path / "mark.npy").exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.zeros(2, [("a", "f4")]),
        np.datetime64("2020-01-01"),
        pathlib.PurePosixPath("a"),
        DataFileError("a", "b"),
    ],
)
def test_other_objects_are_refused(tmp_path, value):
    for protocol in (2, 5):
        with pytest.raises(DataFileError, match="plain data"):
            load_pickle(write(tmp_path, value, protocol))


def laughs(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_bombs_end_soon(tmp_path):
    start = time.perf_counter()
    cyclic = []
    cyclic.append(cyclic)
    with pytest.raises(DataFileError):
        load_pickle(write(tmp_path, cyclic))
    assert isinstance(load_pickle(write(tmp_path, laughs(60))), list)
    for data in (
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # bytes of 2^63
        b"\x80\x02]r\xff\xff\xff\xff.",  # place 2^32 of the memo: a list, for it is a dict here
        b"\x80\x02" + b"(" * 100000 + b".",
        b"\x80\x02" + b"]" * 100000 + b"a" * 99999 + b".",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",  # an integer of 2^31 bytes
        b"\x80\x05\x96\x00\x00\x00\x00\x00\x01\x00\x00.",  # changeable bytes of 2^40
    ):
        (tmp_path / "a.pkl").write_bytes(data)
        try:
            assert load_pickle(tmp_path / "a.pkl") == []
        except DataFileError as error:
            assert str(error).startswith(str(tmp_path / "a.pkl"))
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "repeated",
    [
        # Each copies 60 kB that the file holds once: text to bytes, a set, an array.
        b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R",
        b"cbuiltins\nfrozenset\nh\x00\x85R",
        b"cnumpy.core.numeric\n_frombuffer\n(h\x01h\x02(K\x0fM\xa0\x0ftX\x01\x00\x00\x00CtR",
    ],
)
def test_copies_cannot_outgrow_the_file(tmp_path, repeated):
    letters = "".join(map(chr, range(20_000, 40_000))) if b"frozenset" in repeated else "x" * 60_000
    text = letters.encode()
    start = b"\x80\x04X" + len(text).to_bytes(4, "little") + text + b"q\x000"
    start += b"B" + (60_000).to_bytes(4, "little") + bytes(60_000) + b"q\x010"
    start += b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85Rq\x020"
    path = tmp_path / "a.pkl"
    path.write_bytes(start + b"(" + 3 * repeated + b"t.")
    assert len(load_pickle(path)) == 3
    path.write_bytes(start + b"(" + 2000 * repeated + b"t.")
    with pytest.raises(DataFileError, match="far more than the file"):
        load_pickle(path)


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\nset\n.",  # a name alone
        b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R.",  # a type of numbers alone
        b"cbuiltins\nset\n}X\x01\x00\x00\x00aK\x01sb0N.",  # an attribute for one of the constructors
        b"]}b.",  # a state for a list
        b"K\x01K\x02.",  # two values
        b"(K\x01.",  # a container that is not closed
        b"K\x01)R.",  # a call of a number
        b"cbuiltins\nset\n]R.",  # arguments that are no tuple
        b"X\x01\x00\x00\x00aQ.",  # an object by a name of the program's own
        b"cbuiltins\nset\n)\x81.",  # an object that is made, not called
        b"ccollections\nOrderedDict\n)R}b.",
    ],
)
def test_nothing_but_plain_data_is_built(tmp_path, code):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + code)
    with pytest.raises(DataFileError, match="no readable pickle of plain data"):
        load_pickle(path)
    assert load_pickle(write(tmp_path, {1, 2})) == {1, 2}


def test_a_long_array_of_zeros_reads_in_every_protocol(tmp_path):
    for protocol in range(6):
        array = load_pickle(write(tmp_path, np.zeros((500, 400)), protocol))
        assert array.shape == (500, 400) and not array.any()
        array += 1  # is its owner's


def fuzzed(data: bytes, count: int, seed: int):
    """Cut short, bits flipped, bytes replaced, parts repeated or removed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        content = bytearray(data)
        kind = rng.integers(5)
        place = int(rng.integers(len(content)))
        if kind == 0:
            del content[place:]
        elif kind == 1:
            for bit in rng.integers(8 * len(content), size=rng.integers(1, 6)):
                content[bit // 8] ^= 1 << (bit % 8)
        elif kind == 2:
            length = int(rng.integers(1, 9))
            content[place : place + length] = rng.bytes(length)
        elif kind == 3:
            length = int(rng.integers(1, 40))
            content[place:place] = content[place : place + length]
        else:
            del content[place : place + int(rng.integers(1, 40))]
        yield bytes(content)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_fuzzed_pickles(tmp_path, protocol):
    path = write(tmp_path, [VALUE, ARRAYS] if protocol > 2 else [ARRAYS, VALUE["nested"], VALUE["tuples"]], protocol)
    failed = 0
    for content in fuzzed(path.read_bytes(), 150, protocol):
        path.write_bytes(content)
        try:
            load_pickle(path)
        except DataFileError as error:
            assert str(path) in str(error)
            failed += 1
    assert failed > 50


def test_a_checkpoint_of_tensors_and_containers(tmp_path):
    state = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2, dtype=torch.int64))
    content = {"state_dict": state, "meta": {"epoch": 3, "name": "x"}, "list": [1, (2, 3)]}
    torch.save(content, tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth")
    torch.testing.assert_close(found["state_dict"], state)
    assert found["meta"] == content["meta"]
    torch.save(content, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(load_checkpoint(tmp_path / "b.pth")["state_dict"], state)


@pytest.fixture
def mmengine_objects(monkeypatch):
    """A class as mmengine's, to write with; it is gone when the file is read."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self.history = np.arange(3.0)

    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield HistoryBuffer()
    assert "history_buffer" in HistoryBuffer.__module__


def test_logs_beside_the_tensors_are_left_out(tmp_path, mmengine_objects, monkeypatch):
    message_hub = {"log_scalars": collections.OrderedDict(loss=mmengine_objects), "value": np.float64(3)}
    optimizer = {"state": collections.defaultdict(dict, {0: {"step": torch.tensor(3.0)}})}
    content = {"state_dict": {"a": torch.ones(3)}, "message_hub": message_hub, "optimizer": optimizer}
    torch.save(content, tmp_path / "a.pth")
    for name in [name for name in sys.modules if name.startswith("mmengine")]:
        monkeypatch.delitem(sys.modules, name)
    found = load_checkpoint(tmp_path / "a.pth")
    torch.testing.assert_close(found["state_dict"]["a"], torch.ones(3))
    buffer = found["message_hub"]["log_scalars"]["loss"]
    assert type(buffer) is IgnoredObject
    assert not vars(buffer)
    assert found["optimizer"]["state"][0]["step"] == 3
    with pytest.raises(DataFileError, match=r"a\.pth: holds an object of (mmengine|numpy)"):
        load_checkpoint(tmp_path / "a.pth", ignored_modules=())


def test_the_configuration_beside_the_tensors_is_left_out(tmp_path, monkeypatch):
    """As Lightning saves hyperparameters that hydra has read."""
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __init__(self):
            self.content, self.kind = {"epochs": 3, "self": self}, typing.Any

    DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {"state_dict": {"model.a": torch.ones(3)}, "hyper_parameters": {"config": DictConfig()}}
    torch.save(content, tmp_path / "a.ckpt")
    for name in ("omegaconf", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    found = load_checkpoint(tmp_path / "a.ckpt")
    torch.testing.assert_close(found["state_dict"]["model.a"], torch.ones(3))
    assert type(found["hyper_parameters"]["config"]) is IgnoredObject and "omegaconf" not in sys.modules


def test_a_checkpoint_runs_nothing(tmp_path):
    mark = tmp_path / "mark"
    for value in (
        Runs(os.system, f"touch {mark}"),
        Runs(eval, f"open({str(mark)!r}, 'w')"),
        Runs(np.save, str(mark), 1),
    ):
        for zipped in (True, False):
            torch.save({"a": value}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
            try:
                load_checkpoint(tmp_path / "a.pth")
            except DataFileError as error:
                assert str(error).startswith(str(tmp_path / "a.pth"))
    assert not list(tmp_path.glob("mark*"))


def test_missing_and_damaged_checkpoints(tmp_path):
    path = tmp_path / "a.pth"
    with pytest.raises(DataFileError, match="no such file"):
        load_checkpoint(path)
    for zipped in (True, False):
        torch.save({"a": torch.ones(30), "b": [1, 2]}, path, _use_new_zipfile_serialization=zipped)
        for content in fuzzed(path.read_bytes(), 60, 7):
            path.write_bytes(content)
            try:
                load_checkpoint(path)
            except DataFileError as error:
                assert str(path) in str(error)
