"""What shards are called, what is in them, and whether a folder of them is that of the same work."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..io.storage import Folder


Item = TypeVar("Item")


def cut(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Pieces of a list, or ranges of a range, of `size` items each; the last one may be shorter.

    Raises:
        ValueError: The size is not positive.
    """
    if size < 1:
        raise ValueError(f"the size of a shard is {size}; expected at least 1")
    return [items[start : start + size] for start in range(0, len(items), size)]


def shard_names(prefix: str, count: int) -> list[str]:
    """Names of the shards of a split or the like, as `datasets` has them, without an ending."""
    return [f"{prefix}-{index:05d}-of-{count:05d}" for index in range(count)]


def check_settings(folder: Folder, name: str, settings: Mapping[str, Any], what: str, inside: str) -> None:
    """Keeps the settings of a work beside its shards, so that shards of different ones never mix.

    Args:
        folder: Of the work.
        name: Of the file of settings in it.
        settings: JSON values.
        what: The work, for messages: "a data set".
        inside: Folder of the shards in it, which has to be empty where there are no settings.

    Raises:
        ValueError: It was begun with others, or holds files of something else.
    """
    # Through JSON, so that tuples and lists are the same.
    settings = json.loads(json.dumps(settings))
    if folder.is_file(name):
        earlier = json.loads(folder.read_text(name))
        changed = sorted(key for key in {*settings, *earlier} if settings.get(key) != earlier.get(key))
        if changed:
            raise ValueError(
                f"{folder} holds {what} that was begun with another {', '.join(changed)}; "
                "expected the same settings, or an empty folder"
            )
    elif folder.names(f"{inside}/*"):
        raise ValueError(f"{folder.place(inside)} holds other files; expected an empty folder")
    else:
        folder.write_text(name, json.dumps(settings, indent=1))
