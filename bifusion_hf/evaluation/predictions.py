"""Predictions in a file: written frame by frame, read back and evaluated without the network.

The file is Parquet, one row a frame. A prediction is tied to its points by their pixels in the depth image, so that
ground truth comes from the data set and never from the file. The masks of a frame are packed bits, compressed; the
file's metadata holds the label space and the protocol as JSON. Nothing in it is ever executed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.frames import frame_from_row
from ..io.atomic import new_file
from .evaluator import EvaluationProtocol, FrameEvaluator, FramePrediction, processor_protocol


if TYPE_CHECKING:
    import pyarrow

    from ..processing_bifusion import BiFusionProcessor

_METADATA_KEY = b"bifusion_predictions"
# What of the processor decides how labels are read, and which points there are.
_PROCESSOR_FIELDS = (
    "num_points",
    "sampling_seed",
    "stuff_classes",
    "class_to_label",
    "label_names",
    "num_semantic_labels",
    "mask_threshold",
    "max_instances",
    "part_gap",
)
# Frames written at once.
_GROUP = 64


def _schema() -> "pyarrow.Schema":
    import pyarrow

    return pyarrow.schema(
        [
            ("frame_id", pyarrow.string()),
            ("pixel_indices", pyarrow.list_(pyarrow.int32())),
            ("masks", pyarrow.binary()),
            ("scores", pyarrow.list_(pyarrow.float32())),
            ("labels", pyarrow.list_(pyarrow.int32())),
            ("semantic", pyarrow.list_(pyarrow.int16())),
        ]
    )


class PredictionWriter:
    """Writes predictions to a file; use it as a context, and its `write` as `on_prediction` of `evaluate_model`.

    The file is there when the context has ended well, and only then.

    Args:
        path: The file; its folder is made.
        processor: Of the network.
        semantic_names: Names of the semantic classes, or None.
    """

    def __init__(
        self, path: str | Path, processor: "BiFusionProcessor", semantic_names: Mapping[int, str] | None = None
    ):
        metadata = {
            "processor": {name: getattr(processor, name) for name in _PROCESSOR_FIELDS},
            "semantic_names": semantic_names,
        }
        self._path = path
        self._metadata = {_METADATA_KEY: json.dumps(metadata).encode()}
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "PredictionWriter":
        import pyarrow.parquet

        with ExitStack() as stack:
            partial = stack.enter_context(new_file(self._path))
            schema = _schema().with_metadata(self._metadata)
            writer = pyarrow.parquet.ParquetWriter(partial, schema, compression="zstd")
            self._writer = stack.enter_context(writer)
            stack.push(lambda kind, *_: None if kind else self._flush())
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def write(self, prediction: FramePrediction) -> None:
        """Adds a frame.

        Raises:
            ValueError: The points do not come from a depth image.
        """
        if (prediction.pixel_indices < 0).any():
            raise ValueError(
                f"{prediction.frame_id}: points have no pixel in a depth image; expected one for each, since saved "
                "predictions are tied to their points by it"
            )
        self._rows.append(
            {
                "frame_id": prediction.frame_id,
                "pixel_indices": prediction.pixel_indices,
                "masks": np.packbits(prediction.masks, axis=1).tobytes(),
                "scores": prediction.scores,
                "labels": prediction.labels,
                "semantic": prediction.semantic,
            }
        )
        if len(self._rows) == _GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._writer.schema))
            self._rows = []


class PredictionFile:
    """Reads what `PredictionWriter` wrote.

    Args:
        path: The file.

    Raises:
        ValueError: The file is missing, damaged, or no prediction file; the message names it.
    """

    def __init__(self, path: str | Path):
        import pyarrow.parquet

        self.path = Path(path)
        try:
            self._file = pyarrow.parquet.ParquetFile(self.path)
            if not self._file.schema_arrow.equals(_schema()):
                raise ValueError(f"columns {self._file.schema_arrow.names}")
            self.frame_ids: list[str] = self._file.read(columns=["frame_id"]).column("frame_id").to_pylist()
            metadata = json.loads(self._file.schema_arrow.metadata[_METADATA_KEY])
            self._processor_values = dict(metadata["processor"])
            names = metadata["semantic_names"]
            self.semantic_names = None if names is None else {int(key): name for key, name in names.items()}
        except (OSError, pyarrow.ArrowException, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a file of saved predictions ({error})") from error

    def processor(self) -> "BiFusionProcessor":
        """A processor that reads labels as the network's did.

        Raises:
            ValueError: The file's metadata is malformed.
        """
        from ..processing_bifusion import BiFusionProcessor

        try:
            # Files from before there was a choice hold masks that are whole.
            return BiFusionProcessor(**{"part_gap": 0.0, **self._processor_values})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: malformed metadata ({error})") from error

    def __iter__(self) -> Iterator[FramePrediction]:
        """The predictions in the order they were written.

        Raises:
            ValueError: The file is damaged; the message names it.
        """
        import pyarrow

        try:
            for batch in self._file.iter_batches(batch_size=1):
                yield self._prediction(batch)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{self.path}: damaged ({error})") from error

    def _prediction(self, batch: "pyarrow.RecordBatch") -> FramePrediction:
        def values(name: str) -> np.ndarray | None:
            column = batch.column(name)
            return None if column.null_count else column.flatten().to_numpy()

        frame_id, packed = batch.column("frame_id")[0].as_py(), batch.column("masks")[0].as_py()
        pixels, scores, labels = values("pixel_indices"), values("scores"), values("labels")
        if frame_id is None or packed is None or any(value is None for value in (pixels, scores, labels)):
            raise ValueError(f"{self.path}: frame {frame_id!r} has an empty field")
        width = -(-len(pixels) // 8)
        if len(packed) != len(scores) * width:
            raise ValueError(
                f"{self.path}: masks of {frame_id} have {len(packed)} bytes; expected {len(scores)} x {width} for "
                f"{len(pixels)} points"
            )
        bits = np.frombuffer(packed, dtype=np.uint8).reshape(len(scores), width)
        masks = np.unpackbits(bits, axis=1, count=len(pixels)).astype(bool)
        return FramePrediction(frame_id, pixels.astype(np.int64), masks, scores, labels, values("semantic"))


def evaluate_predictions(
    predictions: PredictionFile,
    rows: Sequence[Mapping[str, Any]],
    *,
    limit: int | None = None,
    class_agnostic: bool = False,
    include_95: bool = False,
) -> dict[str, Any]:
    """Measures saved predictions against a data set.

    Args:
        predictions: The predictions of exactly these frames, in any order.
        rows: Rows of `load_frames`, not streamed.
        limit: The first rows only.
        class_agnostic: Leave the labels out.
        include_95: See `InstanceAveragePrecision`.

    Returns:
        The same result as `evaluate_model` gave when the predictions were made.

    Raises:
        ValueError: The frames are not the same, a frame has no instance labels, or a pixel is outside its image.
    """
    processor = predictions.processor()
    row_of_frame = _match_frames(predictions, rows, limit)
    evaluator = FrameEvaluator(
        EvaluationProtocol.of_model(
            processor, predictions.semantic_names, class_agnostic=class_agnostic, include_95=include_95
        )
    )
    for prediction in predictions:
        frame = frame_from_row(rows[row_of_frame[prediction.frame_id]])
        pixels = prediction.pixel_indices
        if frame.instance is None:
            raise ValueError(f"{frame.frame_id}: no instance labels; expected them for evaluation")
        if len(pixels) and not (pixels.min() >= 0 and pixels.max() < frame.depth.size):
            raise ValueError(
                f"{predictions.path}: {frame.frame_id} has pixels {pixels.min()}..{pixels.max()}; expected "
                f"0..{frame.depth.size - 1}: were the predictions made from another version of the data set?"
            )
        semantic = None if frame.semantic is None else frame.semantic.reshape(-1)[pixels]
        truth = processor.point_labels(frame.instance.reshape(-1)[pixels], semantic, frame.frame_id)
        try:
            evaluator.update(prediction, truth["instance"], truth["class_labels"], truth.get("semantic"))
        except ValueError as error:
            raise ValueError(f"{predictions.path}: {error}") from error
    return evaluator.compute(processor_protocol(processor))


def _match_frames(predictions: PredictionFile, rows: Sequence[Mapping[str, Any]], limit: int | None) -> dict[str, int]:
    """Row of each frame.

    Raises:
        ValueError: A frame of one side is not on the other, or a name occurs twice.
    """
    names = list(rows["frame_id"])[:limit]
    row_of_frame = {name: row for row, name in enumerate(names)}
    for source, found in (("the data set", names), (predictions.path, predictions.frame_ids)):
        if len(set(found)) != len(found):
            raise ValueError(f"{source}: {len(found) - len(set(found))} frames have the name of another")
    missing = sorted(row_of_frame.keys() - predictions.frame_ids)
    unknown = sorted(set(predictions.frame_ids) - row_of_frame.keys())
    if missing or unknown:
        raise ValueError(
            f"{predictions.path}: {len(missing)} of {len(names)} frames have no prediction {missing[:3]}, and "
            f"{len(unknown)} predictions have no frame {unknown[:3]}; expected the same frames (see limit)"
        )
    return row_of_frame
