"""What is named on the Hub: pinned names, and downloads that are what the Hub promised."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError

from ..assets import SAMPLE_CHECKPOINT
from .files import DataFileError


# What readers of JSON, configurations and weights raise where these are not what they expect.
_MALFORMED = (
    *(ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError),
    *(StrictDataclassError, SafetensorError),
)
WEIGHTS_FILE = "model.safetensors"
# open_clip's architecture and tag: "ViT-B-16/openai", "coca_ViT-L-14/laion2b_s13b_b90k", or with its own ":".
OPEN_CLIP_NAME = re.compile(r"((?:[\w-]+[-_])?ViT-[A-Za-z0-9]+-\d+[\w-]*|nllb-clip-[\w-]+)[/:]([\w-]+)")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LFS_POINTER = b"version https://git-lfs"
# Safetensors itself refuses longer ones.
_LONGEST_HEADER = 100_000_000
# Names of blobs in the cache: SHA-256 of a large file, or git's SHA-1 of a small one.
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


def split_revision(source: str | Path) -> tuple[str, str | None]:
    """Name and revision of a model or data set.

    Args:
        source: A folder; or an id of the Hub, `"org/name"`, or `"org/name@revision"` for a branch, a tag or a commit.

    Returns:
        What is in front of the `@`, and what is behind it; a folder as it is.

    Raises:
        ValueError: No revision follows the `@`.
    """
    repository, at, revision = str(source).partition("@")
    if not at or Path(source).exists():
        return str(source), None
    if not revision:
        raise ValueError(f"{source}: names no revision; expected org/name@revision")
    return repository, revision


def pinned_name(source: str | Path) -> tuple[str, dict[str, str]]:
    """The first and the keyword arguments of a `from_pretrained` for a checkpoint.

    Args:
        source: See `split_revision`; or `"sample"`, the checkpoint that the package carries.

    Raises:
        FileNotFoundError: There is no such folder, and the Hub has no such names.
        ValueError: No revision follows the `@`.
    """
    name, revision = split_revision(checkpoint_place(source))
    refuse_nowhere(name, source, "checkpoint")
    return name, {} if revision is None else {"revision": revision}


def refuse_nowhere(name: str, source: str | Path, what: str) -> None:
    """Refuses a name that is no folder here and can be none of the Hub, before the Hub is asked.

    Args:
        name: Of `split_revision`.
        source: What the user gave.
        what: `"checkpoint"`, `"frames"` or `"labeler"`.

    Raises:
        FileNotFoundError: It is such a name.
    """
    if not Path(name).exists() and not _HUB_ID.fullmatch(name):
        other = {
            "checkpoint": "'sample' is the checkpoint of the package",
            "frames": "'sample' is the frames of the package",
            "labeler": "or open_clip's 'architecture/tag'",
        }[what]
        raise FileNotFoundError(f"{source}: no such folder, and no id of the Hub, 'org/name'; {other}")


def checkpoint_place(source: Any) -> Any:
    """The folder of the package's own checkpoint for `"sample"`; anything else as it is."""
    return str(SAMPLE_CHECKPOINT) if isinstance(source, str | Path) and str(source) == "sample" else source


def weights_digest(source: str | Path) -> str | None:
    """What tells the weights in a folder from those that are there later: their SHA-256; None for an id of the Hub."""
    path = Path(checkpoint_place(source), WEIGHTS_FILE)
    if not path.is_file():
        return None
    return _digest(path, hashlib.sha256()).hexdigest()


@contextmanager
def naming(source: Any) -> Iterator[None]:
    """Within, what is wrong with a checkpoint's content is a ValueError that begins with the checkpoint's name."""
    try:
        yield
    except _MALFORMED as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from error


def explain_missing(source: str | Path, error: OSError) -> OSError:
    """An error of the Hub with what comes before it: that there is no such folder either."""
    if Path(source).exists() or isinstance(error, DataFileError):
        return error
    return OSError(f"{source}: there is no such folder, and from the Hub: {error}")


def verify_download(path: str | Path) -> None:
    """Holds a file of the Hub's cache against its checksum, after which the cache names the file.

    Files elsewhere, and copies on systems without symbolic links, carry no checksum and pass.

    Args:
        path: As `hf_hub_download` returns it.

    Raises:
        DataFileError: The content is another; the message has both checksums and the remedy.
    """
    blob = Path(path).resolve()
    if blob.parent.name != "blobs":
        return
    if _SHA256.fullmatch(blob.name):
        digest = hashlib.sha256()
    elif _SHA1.fullmatch(blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return
    if _digest(blob, digest).hexdigest() != blob.name:
        raise DataFileError(
            path,
            f"has the {digest.name} {digest.hexdigest()}, but the Hub promised {blob.name}: the download is damaged "
            f"or not the released file. Delete {blob} and load again",
        )


def _digest(path: Path, digest: Any) -> Any:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest


def verify_safetensors(path: str | Path) -> None:
    """Whether a file is safetensors and as long as its header says; the tensors are not read.

    Raises:
        DataFileError: It is cut short, or something else.
    """
    refuse_lfs_pointer(path)
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        header = file.read(length) if length <= size else b""
    if len(start) == 8 and len(header) == length:
        try:
            ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
            raise DataFileError(path, "is no safetensors file: its header cannot be read") from error
    elif len(start) == 8 and length > _LONGEST_HEADER:
        raise DataFileError(path, "is no safetensors file: it does not begin as one")
    else:
        needed = 8 + length
    if size < needed:
        raise DataFileError(
            path, f"is cut short: it has {size} bytes and needs {needed}; copy or download it once more"
        )


def refuse_lfs_pointer(path: str | Path) -> None:
    """Names a file that only points to its content, as a clone without Git LFS leaves it.

    Raises:
        DataFileError: It is one.
    """
    with open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataFileError(path, "is a Git LFS pointer, not the file itself: run `git lfs pull` beside it")


def verify_pulled_weights(
    source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None
) -> None:
    """`verify_download` for the weights that transformers has pulled, `verify_safetensors` for those of a folder.

    What is neither in the cache nor a folder passes.

    Raises:
        DataFileError: See there.
    """
    if Path(source).is_dir():
        for pattern in (WEIGHTS_FILE, "model-*-of-*.safetensors"):
            for path in sorted(Path(source).glob(pattern)):
                verify_safetensors(path)
        return
    try:
        path = try_to_load_from_cache(str(source), WEIGHTS_FILE, revision=revision, cache_dir=cache_dir)
    except HFValidationError:
        # Neither a folder nor an id: transformers has its own words for that.
        return
    if isinstance(path, str):
        verify_download(path)
