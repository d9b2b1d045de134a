"""Files of results: of the frames of a shard, and of all shards in one.

Parquet has a row a frame: `frame_id`; `number`, its place in its source; `height`, `width`; `names` and `scores` of
the segments; `masks`, the run lengths of each as in COCO (down the columns, the first run outside); `content`, what
`bifusion-predict` writes into NAME.json for a single frame. COCO's JSON is what `InstanceSegmentation.to_coco` gives.
Both hold the settings and the frames that could not be used, Parquet as its metadata, JSON under `info`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from ..io.files import DataFileError
from ..io.storage import Folder
from ..results import InstanceSegmentation, run_lengths


if TYPE_CHECKING:
    import pyarrow

_METADATA_KEY = b"bifusion_results"
# Frames written at once.
_GROUP = 64


class ResultWriter(Protocol):
    """Writes the results of a shard to a file, which is whole when `close` has been called."""

    def write(self, number: int, result: InstanceSegmentation) -> None:
        """Adds a frame.

        Args:
            number: Of the frame in its source.
            result: What is found in it.
        """
        ...

    def close(self, about: Mapping[str, Any]) -> None:
        """Ends the file.

        Args:
            about: What there is to say of all frames, JSON values.
        """
        ...


def _schema() -> "pyarrow.Schema":
    import pyarrow

    return pyarrow.schema(
        [
            ("frame_id", pyarrow.string()),
            ("number", pyarrow.int64()),
            ("height", pyarrow.int32()),
            ("width", pyarrow.int32()),
            ("names", pyarrow.list_(pyarrow.string())),
            ("scores", pyarrow.list_(pyarrow.float64())),
            ("masks", pyarrow.list_(pyarrow.list_(pyarrow.int32()))),
            ("content", pyarrow.string()),
        ]
    )


class ParquetResults:
    """`ResultWriter` of Parquet.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        import pyarrow.parquet

        self._writer = pyarrow.parquet.ParquetWriter(path, _schema(), compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, number: int, result: InstanceSegmentation) -> None:
        """See `ResultWriter`."""
        content = result.to_json()
        segments = content["segments"]
        self._rows.append(
            {
                "frame_id": result.frame.frame_id,
                "number": number,
                "height": content["height"],
                "width": content["width"],
                "names": [segment.get("name", segment["label"]) for segment in segments],
                "scores": [segment["score"] for segment in segments],
                "masks": [run_lengths(result["segmentation"] == segment["id"]) for segment in segments],
                "content": json.dumps(content),
            }
        )
        if len(self._rows) == _GROUP:
            self._flush()

    def close(self, about: Mapping[str, Any]) -> None:
        """See `ResultWriter`."""
        self._flush()
        self._writer.add_key_value_metadata({_METADATA_KEY: json.dumps(about).encode()})
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=_schema()))
            self._rows = []


class CocoResults:
    """`ResultWriter` of COCO's JSON; ids of images and annotations are those in the file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._content = _empty_coco()

    def write(self, number: int, result: InstanceSegmentation) -> None:
        """See `ResultWriter`."""
        coco = result.to_coco()
        coco["images"][0]["number"] = number
        _add_coco(self._content, coco)

    def close(self, about: Mapping[str, Any]) -> None:
        """See `ResultWriter`."""
        _write_coco(self._path, self._content, about)


WRITERS = {"parquet": (".parquet", ParquetResults), "coco": (".json", CocoResults)}


def _empty_coco() -> dict[str, list[dict[str, Any]]]:
    return {"images": [], "annotations": [], "categories": []}


def _add_coco(content: dict[str, list[dict[str, Any]]], other: Mapping[str, list[dict[str, Any]]]) -> None:
    """Adds the frames of another file, with ids that go on."""
    first = len(content["images"])
    place = {image["id"]: first + index for index, image in enumerate(other["images"])}
    content["images"] += [{**image, "id": place[image["id"]]} for image in other["images"]]
    for annotation in other["annotations"]:
        number = len(content["annotations"]) + 1
        content["annotations"].append({**annotation, "id": number, "image_id": place[annotation["image_id"]]})
    known = {category["id"] for category in content["categories"]}
    content["categories"] += [category for category in other["categories"] if category["id"] not in known]
    content["categories"].sort(key=lambda category: category["id"])


def _write_coco(path: Path, content: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({"info": about, **content}) + "\n", encoding="utf-8")


def read_about(folder: Folder, name: str) -> dict[str, Any]:
    """What the file of a shard says of all its frames.

    Raises:
        DataFileError: It is no file of results.
    """
    try:
        if name.endswith(".json"):
            return json.loads(folder.read_text(name))["info"]
        with _parquet(folder, name) as file:
            return json.loads(file.metadata.metadata[_METADATA_KEY])
    except (LookupError, TypeError, json.JSONDecodeError) as error:
        raise DataFileError(folder.place(name), f"is no file of results ({error})") from error


def read_results(folder: Folder, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The frames of Parquet files of results.

    Returns:
        The content of each frame's JSON, with `number` and, in each segment, `mask`: bool [H, W].
    """
    for name in names:
        with _parquet(folder, name) as file:
            for batch in file.iter_batches(batch_size=_GROUP):
                for row in batch.to_pylist():
                    content = {**json.loads(row["content"]), "number": row["number"]}
                    for segment, lengths in zip(content["segments"], row["masks"], strict=True):
                        segment["mask"] = mask_of_runs(lengths, row["height"], row["width"])
                    yield content


def mask_of_runs(lengths: Sequence[int], height: int, width: int) -> np.ndarray:
    """The mask bool [H, W] of its run lengths, the inverse of `run_lengths`."""
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return flat.reshape(height, width, order="F")


def merge_results(folder: Folder, names: Sequence[str], target: str, about: Mapping[str, Any]) -> None:
    """Writes the frames of all shards to one file, in the order of the names.

    Args:
        folder: Of both.
        names: Of the files of the shards, of one kind.
        target: Of the one file.
        about: What it says of all frames.
    """
    with folder.new_file(target) as path:
        if target.endswith(".json"):
            content = _empty_coco()
            for name in names:
                _add_coco(content, json.loads(folder.read_text(name)))
            _write_coco(path, content, about)
            return
        import pyarrow.parquet

        with pyarrow.parquet.ParquetWriter(path, _schema(), compression="zstd") as writer:
            for name in names:
                with _parquet(folder, name) as file:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group))
            writer.add_key_value_metadata({_METADATA_KEY: json.dumps(about).encode()})


@contextlib.contextmanager
def _parquet(folder: Folder, name: str) -> Iterator[Any]:
    import pyarrow.parquet

    handle: IO[bytes]
    with folder.open(name) as handle:
        try:
            file = pyarrow.parquet.ParquetFile(handle)
            if not file.schema_arrow.equals(_schema()):
                raise DataFileError(folder.place(name), f"has the columns {file.schema_arrow.names}; not results")
        except pyarrow.ArrowException as error:
            raise DataFileError(folder.place(name), f"is no file of results ({error})") from error
        yield file
