"""Checkpoint files of other projects: found on disk or on the Hub, and read without running anything in them."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from .files import DataFileError, path_inside, read_json
from .hub_files import verify_download, verify_safetensors
from .safe_pickle import load_checkpoint
from .torchscript import is_torchscript, read_torchscript


WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
# Names the shards of a checkpoint in several files, and the tensors of each.
INDEX_SUFFIX = ".index.json"
# What wrappers put into the names of a network's tensors: torch.compile's, and those of data parallel training.
COMPILED, PARALLEL = "_orig_mod.", "module."
# Where training frameworks keep the weights within a checkpoint.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")


def resolve_file(source: str | Path, names: Sequence[str] = (), revision: str | None = None) -> Path:
    """The local path of a checkpoint, downloaded if need be.

    Args:
        source: A file; a folder; `"org/repo"`; or `"org/repo:file"`. Downloads are shown, cached and reused offline.
        names: File names that are taken first in a folder or repository; otherwise it must hold a single weight file,
            or the index of a checkpoint in shards, which are then downloaded too.
        revision: Branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: There is no such file, folder, repository, revision, or file in it.
        ConnectionError: The Hub cannot be reached and nothing is cached.
        ValueError: It is not clear which file is meant, or its content is not what the Hub promised.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return path / _choose(str(path), [file.name for file in path.iterdir() if file.is_file()], names)
    repository, _, file = str(source).partition(":")
    if path.suffix in WEIGHT_SUFFIXES and not file or repository.count("/") != 1 or path.is_absolute():
        raise FileNotFoundError(f"{source}: no such file; on the Hub a source is 'org/repo' or 'org/repo:file'")
    try:
        if not file:
            file = _choose(repository, _list_files(repository, revision), names)
        downloaded = Path(hf_hub_download(repository, file, revision=revision))
        shards = _shards(downloaded) if file.endswith(INDEX_SUFFIX) else []
        folder = PurePosixPath(file).parent
        for shard in shards:
            verify_download(hf_hub_download(repository, (folder / shard).as_posix(), revision=revision))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository}: no such repository on the Hub, or it is private and no token is set"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repository}: has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(_unreachable(f"{repository}:{file or '*'}")) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repository}: has no file {file!r} at revision {revision or 'main'}") from error
    except HFValidationError as error:
        raise FileNotFoundError(f"{source}: no such file, and no name of a repository on the Hub") from error
    except (FileNotFoundError, ConnectionError):
        raise
    except Exception as error:
        if not is_network_error(error):
            raise
        raise ConnectionError(f"{_unreachable(str(source))} ({error})") from error
    verify_download(downloaded)
    return downloaded


def is_network_error(error: BaseException | None) -> bool:
    """Whether the network is at the root of an error of the Hub's client; its threads wrap what happened in them."""
    while error is not None:
        # httpx has gone by two names, and none of its errors derives from OSError.
        if isinstance(error, OSError) or type(error).__module__.split(".")[0].startswith(("httpx", "httpcore")):
            return True
        error = error.__cause__
    return False


def _unreachable(what: str) -> str:
    return f"{what}: the Hub cannot be reached, and the cache does not hold it"


def _list_files(repository: str, revision: str | None) -> list[str]:
    """Names of the files of a repository; those in the cache where the Hub cannot be reached."""
    try:
        return HfApi().list_repo_files(repository, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    # Every client library has errors of its own for a network that is down.
    except Exception as error:
        try:
            folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            raise ConnectionError(f"{_unreachable(repository)} ({error})") from error
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _choose(place: str, found: Sequence[str], names: Sequence[str]) -> str:
    for name in names:
        if name in found:
            return name
    weights = sorted(name for name in found if Path(name).suffix in WEIGHT_SUFFIXES)
    if len(weights) == 1:
        return weights[0]
    indices = sorted(name for name in found if name.endswith(INDEX_SUFFIX))
    # Of both kinds, the one that cannot run anything.
    safe = [name for name in indices if ".safetensors" in name] or indices
    if len(safe) == 1:
        return safe[0]
    if not weights:
        raise FileNotFoundError(
            f"{place}: holds no weight file ({', '.join(WEIGHT_SUFFIXES)}); it has {sorted(found)}"
        )
    raise ValueError(f"{place}: holds several weight files, name one as '{place}:FILE': {weights}")


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU.

    Args:
        path: `.safetensors`, or a `torch.save` file: a plain state dict, or one under `state_dict`,
            `model_state_dict` or `model`, as mmengine, Lightning and others write it; a TorchScript archive; or the
            `.index.json` of a checkpoint in shards, which lie beside it. Names are those of the bare network.

    Raises:
        DataFileError: The file is damaged, holds anything but tensors and plain containers, or no state dict.
    """
    return _bare_names(_read_tensors(Path(path)))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.name.endswith(INDEX_SUFFIX):
        state: dict[str, torch.Tensor] = {}
        for shard in _shards(path):
            state.update(_read_tensors(path_inside(path.parent, shard, path)))
        return state
    if path.suffix == ".safetensors" and path.is_file():
        verify_safetensors(path)
        try:
            # Read, not mapped: a mapped file that is cut later ends the process at the next look at a tensor.
            return load_file(path, backend="pread")
        except (SafetensorError, OSError, ValueError) as error:
            raise DataFileError(path, f"is no readable safetensors file ({error})") from error
    if path.is_file() and is_torchscript(path):
        return read_torchscript(path)
    content: Any = load_checkpoint(path)
    for key in STATE_DICT_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not any(torch.is_tensor(value) for value in content.values()):
        found = sorted(map(str, content))[:8] if isinstance(content, dict) else type(content).__name__
        raise DataFileError(path, f"holds no state dict; found {found}")
    other = [key for key, value in content.items() if not torch.is_tensor(value)]
    if other:
        raise DataFileError(path, f"its state dict holds more than tensors: {other[:5]}")
    return {str(key): value for key, value in content.items()}


def _shards(index: Path) -> list[str]:
    """File names of the shards that an index names.

    Raises:
        DataFileError: It is no index.
    """
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise DataFileError(index, "has no weight_map of tensors to files")
    return sorted(set(names.values()))


def _bare_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by the names that the network has without wrappers."""
    state = {key.replace(COMPILED, ""): value for key, value in state.items()}
    while state and all(key.startswith(PARALLEL) for key in state):
        state = {key.removeprefix(PARALLEL): value for key, value in state.items()}
    return state
