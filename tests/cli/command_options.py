"""What every option of every command reaches: what the commands call is replaced by something that writes it down.

Each `test_options_*.py` has the commands of one kind. Another value of an option has to change what is written down
(or, where a frame is cheap, what the command makes of it). What comes of it is tested where it is done.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, SimpleNamespace

from frame_factory import make_frame


NAMED = ["--labeler", "clip"]


@dataclasses.dataclass
class Command:
    """A command of `bifusion_hf.cli`.

    Args:
        prepare: Replaces what it calls.
        base: Words that both runs have.
        options: Option, or positional argument -> words that change, and others that both runs have beside those of
            `base`; None for those: the words that change alone, against the base.
        instead: Option -> the words that take the place of the whole base.
    """

    prepare: Callable
    base: list[str]
    options: dict[str, tuple[list[str], list[str] | None]]
    instead: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    observed: dict[tuple[str, ...], list[str]] = dataclasses.field(default_factory=dict)


def all_options(commands):
    return [(name, option) for name, command in commands.items() for option in command.options]


def check_no_option_is_left_out(name, command):
    parser = importlib.import_module(f"bifusion_hf.cli.{name}").build_parser()
    names = {action.option_strings[0] if action.option_strings else action.dest for action in parser._actions}
    assert names - {"-h", "--version"} == set(command.options)


def check_the_same_words_give_the_same(name, command, tmp_path, monkeypatch):
    """Otherwise every option would seem to change something."""
    first, again = (observe(name, command, command.base, tmp_path / run, monkeypatch) for run in ("first", "again"))
    assert first == again


def check_option_reaches_its_consumer(name, command, option, tmp_path, monkeypatch):
    words, beside = command.options[option]
    base = [*command.base, *(beside or [])]
    words = command.instead.get(option, words if beside is None else [*base, *words])
    key = tuple(base)
    if key not in command.observed:
        command.observed[key] = observe(name, command, base, tmp_path / "before", monkeypatch)
    found = observe(name, command, words, tmp_path / "after", monkeypatch)
    # 2 is a usage error.
    assert "ends with 2" not in found + command.observed[key] and found != command.observed[key], "\n".join(found)


def observe(name, command, words, folder, monkeypatch):
    """What a command calls, how it ends and which files it leaves."""
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        calls = Calls(patch)
        calls.replace("batch.open_engine", lambda *args, **options: SimpleNamespace(shown=f"{args} {options}"))
        labeler = SimpleNamespace(settings={"model": "clip"}, templates=("a {}",))
        calls.replace("labeling.TextLabeler", lambda *args, **options: labeler)
        command.prepare(calls)
        try:
            importlib.import_module(f"bifusion_hf.cli.{name}").main(words)
        except SystemExit as error:
            calls.seen.append(f"ends with {error.code}")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    contents = [path.read_text() for path in sorted(folder.rglob("*.json"))]
    return [*calls.seen, *files, *contents]


def plain(value):
    """A value as text that is the same in every run."""
    if value is None or isinstance(value, (str, int, float, Path)):
        return str(value)
    if isinstance(value, (list, tuple, range)):
        return f"[{', '.join(map(plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{plain(key)}: {plain(entry)}' for key, entry in value.items())}}}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and len(dataclasses.fields(value)) < 40:
        return f"{type(value).__name__}({plain(vars(value))})"
    shown = getattr(value, "shown", None)
    return shown if isinstance(shown, str) else type(value).__name__


class Calls:
    """What a command calls.

    Args:
        patch: Puts things in the place of others.
    """

    def __init__(self, patch):
        self.patch = patch
        self.seen = []

    def function(self, name, result=None):
        """A function that writes down its call and gives `result`, or what that makes of the arguments."""

        def call(*args, **options):
            self.seen.append(f"{name}({plain(args)}, {plain(options)})")
            return result(*args, **options) if isinstance(result, FunctionType) else result

        return call

    def replace(self, place, result=None):
        """Puts such a function in the place of one in the package."""
        module, _, name = place.rpartition(".")
        self.patch.setattr(importlib.import_module(f"bifusion_hf.{module}"), name, self.function(name, result))


class Rows(list):
    """Rows of a data set, of which the number can be seen."""

    column_names = ("image",)

    @property
    def shown(self):
        return f"{len(self)} rows"

    def select(self, indices):
        return Rows(self[index] for index in indices)


def frame_of(index=0):
    return make_frame(24, 32, frame_id=f"frame {index}", instance=None, semantic=None)


class Model:
    """A model that goes where it is told."""

    def __init__(self, calls):
        self.calls = calls
        self.config = SimpleNamespace(semantic_id2label={})

    def eval(self):
        return self

    def to(self, device):
        self.calls.seen.append(f"to {device}")
        return self


class Processor:
    def __init__(self):
        self.sampling_seed, self.num_points, self.estimate_up, self.stuff_classes = 0, 5, True, ()
        self.part_gap, self.label_names = 0.05, ("object",)

    @property
    def shown(self):
        return f"processor of seed {self.sampling_seed}, parts {self.part_gap} apart"

    def save_pretrained(self, folder):
        pass
