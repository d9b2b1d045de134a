"""What is named on the Hub: pinned names, and downloads that are what the Hub promised."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from .files import DataFileError


WEIGHTS_FILE = "model.safetensors"
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
    """`split_revision` as the first and the keyword arguments of a `from_pretrained`."""
    name, revision = split_revision(source)
    return name, {} if revision is None else {"revision": revision}


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
    with blob.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        raise DataFileError(
            path,
            f"has the {digest.name} {digest.hexdigest()}, but the Hub promised {blob.name}: the download is damaged "
            f"or not the released file. Delete {blob} and load again",
        )


def verify_pulled_weights(
    source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None
) -> None:
    """`verify_download` for the weights that transformers has pulled; folders and what is not in the cache pass.

    Raises:
        DataFileError: See there.
    """
    if Path(source).is_dir():
        return
    try:
        path = try_to_load_from_cache(str(source), WEIGHTS_FILE, revision=revision, cache_dir=cache_dir)
    except HFValidationError:
        # Neither a folder nor an id: transformers has its own words for that.
        return
    if isinstance(path, str):
        verify_download(path)
