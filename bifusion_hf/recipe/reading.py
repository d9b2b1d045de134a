"""Recipes in files and on the command line, and their keys explained.

One rule for both forms: an unknown key or a value of the wrong type is refused by name. A YAML file may begin with
`extends: OTHER`, a recipe of which it states only the differences.
"""

import copy
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from ..old_names import rename_key, rename_recipe
from .arguments import (
    TrainArguments,
    check_key,
    is_open,
    section_names,
    split_key,
    valid_keys,
)


# What options of the other commands mean here.
_WORDS = {
    "output": ("output_dir",),
    "checkpoint": ("model.pretrained",),
    "data": ("data.train", "data.val"),
}
CONFIG_FOLDER = Path(__file__).parent / "configs"
# The largest recipe of the package has about a hundred.
MAX_VALUES = 10_000


def load_arguments(recipe: str | Path | None, overrides: Sequence[str] = ()) -> TrainArguments:
    """Reads a recipe and applies command-line overrides.

    Args:
        recipe: YAML file, or the name of a recipe that the package carries (`tiny`, `sv3d`, ...); None = defaults.
        overrides: `["--section.key", "value", ...]`; `--section.key=value` works too, and a key alone means true.
            Values are read as YAML.

    Raises:
        ValueError: No such recipe, an unknown key, a wrong type, or a value out of range.
    """
    values = {} if recipe is None else _read_recipe(_recipe_path(recipe))
    alone = copy.deepcopy(values)
    for given, text in _parse_overrides(overrides):
        keys = _keys_of(given)
        for key in keys:
            check_key(key)
        value = _parse_yaml(text, f"--{given} {text!r}")
        for key in keys:
            target = values
            *sections, name = split_key(rename_key(key))
            for section in sections:
                target = target.setdefault(section, {})
                if not isinstance(target, dict):
                    raise ValueError(f"{recipe}: {section} must be a mapping, got {target!r}")
            target[name] = value
    try:
        return TrainArguments.from_dict(values)
    except ValueError as error:
        # Whose mistake it is: the recipe's, if it is there without the overrides too.
        if recipe is None or str(error) != _mistake_in(alone):
            raise
        raise ValueError(f"{recipe}: {error}") from error


def _mistake_in(values: dict[str, Any]) -> str | None:
    """What is wrong with the values of a recipe, None where nothing is."""
    try:
        TrainArguments.from_dict(values)
    except ValueError as error:
        return str(error)
    return None


def _keys_of(word: str) -> tuple[str, ...]:
    """The keys that a word of the command line stands for; a key may be spelled with dashes."""
    if word in _WORDS:
        return _WORDS[word]
    spelled = word.replace("-", "_")
    # Names below open keys, such as those of data sets, keep their dashes.
    return (spelled,) if spelled in valid_keys() else (word,)


def take_device(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Takes `--device` out of the overrides, which is of the machine and not of the recipe.

    Raises:
        ValueError: It has no value, or a word is no key.
    """
    kept: list[str] = []
    device = None
    recipe = [] if not words or words[0].startswith("--") else [words[0]]
    for key, given in split_overrides(words[len(recipe) :]):
        if key != "device":
            kept += given
            continue
        _, equals, text = given[0].partition("=")
        device = text if equals else given[1] if len(given) > 1 else ""
        if not device:
            raise ValueError("--device: expected cpu, cuda, cuda:1, ...")
    return [*recipe, *kept], device


def _read_recipe(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's values over those of the recipe that it extends, which is looked for beside it first."""
    if path in extending:
        raise ValueError(f"{path} extends itself, by way of {', '.join(str(other) for other in extending)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error})") from error
    values = _parse_yaml(text, str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    # Before the layers are laid over each other: an old name of one and a new one of another are the same setting.
    values = rename_recipe(values)
    if values.get("overwrite_output_dir"):
        raise ValueError(
            f"{path}: sets overwrite_output_dir; only the command line may: a recipe that is run again would put the "
            "earlier run aside unasked. Take the line out"
        )
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: extends is {base!r}; expected the name of a recipe")
    beside = path.parent / f"{base}.yaml"
    found = beside if beside.is_file() else _recipe_path(base)
    return _overlaid(_read_recipe(found, (*extending, path)), values)


def _parse_yaml(text: str, place: str) -> Any:
    """The values of YAML text.

    Raises:
        ValueError: It is no YAML of plain values, or unfolds to more than `MAX_VALUES`: an alias costs a few letters
            and stands for everything it names; `place` comes first.
    """
    try:
        value = yaml.safe_load(text)
        count = _unfolded_count(value, {})
    except (yaml.YAMLError, RecursionError) as error:
        found = " ".join(str(error).split())
        raise ValueError(f"{place}: cannot be read as YAML ({type(error).__name__}: {found})") from error
    if count > MAX_VALUES:
        raise ValueError(f"{place}: has {count} values once its aliases are unfolded; expected at most {MAX_VALUES}")
    return value


def _unfolded_count(value: Any, known: dict[int, int | None]) -> int:
    """Values within `value`, each as often as it is reached; what holds itself raises RecursionError."""
    if not isinstance(value, dict | list):
        return 1
    if known.get(id(value), 0) is None:
        raise RecursionError("a value holds itself")
    if id(value) not in known:
        known[id(value)] = None
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded_count(part, known) for part in parts)
    return known[id(value)]


def _overlaid(base: dict[str, Any], values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`base` with `values` in place of its own: sections and open keys entry by entry, other mappings as a whole."""
    whole = [name for name, kind in valid_keys().items() if not is_open(kind)]
    result = dict(base)
    for name, value in values.items():
        key = f"{prefix}{name}"
        both = isinstance(value, dict) and isinstance(base.get(name), dict) and key not in whole
        result[name] = _overlaid(base[name], value, f"{key}.") if both else value
    return result


def recipe_names() -> list[str]:
    """Names of the recipes that the package carries."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml"))


def _recipe_path(recipe: str | Path) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    packaged = CONFIG_FOLDER / f"{recipe}.yaml"
    if packaged.is_file():
        return packaged
    raise ValueError(f"no recipe {str(recipe)!r}: neither a file nor one of {recipe_names()}")


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for key, words in split_overrides(overrides):
        _, equals, text = words[0].partition("=")
        pairs.append((key, text if equals else words[1] if len(words) > 1 else "true"))
    return pairs


def split_overrides(overrides: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Key and words of each override of a command line, in order; see `load_arguments`.

    Raises:
        ValueError: A word is no key.
    """
    found, position = [], 0
    while position < len(overrides):
        word = overrides[position]
        if not word.startswith("--") or word == "--":
            raise ValueError(f"expected --section.key, got {word!r}")
        following = overrides[position + 1 : position + 2]
        has_value = "=" not in word and bool(following) and not following[0].startswith("--")
        found.append((word[2:].partition("=")[0], [word, *following] if has_value else [word]))
        position += 1 + has_value
    return found


def describe_keys() -> str:
    """Every key with its type, default and meaning, section by section, for `--help`."""
    defaults = TrainArguments().flat()
    sections = typing.get_type_hints(TrainArguments)
    meanings = dict(_meanings(TrainArguments))
    for section in section_names():
        meanings.update({f"{section}.{name}": text for name, text in _meanings(sections[section]).items()})
    lines, heading = [], None
    for name, kind in valid_keys().items():
        section = name.rpartition(".")[0]
        if section != heading:
            heading = section
            title = inspect.getdoc(sections[section]).partition("\n")[0] if section else "The run."
            lines += ["", f"{section}: {title}" if section else title]
        default = "{}" if is_open(kind) else defaults[name]
        lines.append(f"  --{name}  {_shown(kind)} (default {'null' if default == 'None' else default})")
        lines.append(textwrap.fill(meanings[name], 110, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines).strip("\n")


def _meanings(section: type) -> dict[str, str]:
    """Key -> what the docstring of its dataclass says about it."""
    arguments = inspect.getdoc(section).partition("Args:\n")[2]
    entries = re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _shown(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if argument is type(None) else _shown(argument) for argument in arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    return kind.__name__ if origin is None else str(kind).replace("typing.", "")
