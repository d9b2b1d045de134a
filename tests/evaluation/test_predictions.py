import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from perfect_network import PerfectNetwork, readable_frame, readable_processor

from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import RGBDFrame, frame_features, frame_to_row
from bifusion_hf.evaluation import PredictionFile, PredictionWriter, evaluate_model, evaluate_predictions
from bifusion_hf.evaluation.evaluator import FramePrediction


@pytest.fixture(scope="module")
def rows():
    frames = [frame_to_row(readable_frame(seed)) for seed in range(5)]
    data = datasets.Dataset.from_list(frames, features=frame_features())
    for column in ("image", "depth", "instance", "semantic", "superpoints"):
        data = data.cast_column(column, datasets.Image(decode=False))
    return data


@pytest.fixture(scope="module", params=[True, False], ids=["class_aware", "class_agnostic"])
def saved(request, rows, tmp_path_factory):
    """A prediction file, the predictions in it, and their result."""
    path = tmp_path_factory.mktemp("predictions") / "new" / "predictions.parquet"
    processor = readable_processor(class_aware=request.param)
    network = PerfectNetwork(processor, confused=[3])
    seen = []
    with PredictionWriter(path, processor, network.config.semantic_id2label) as writer:

        def keep(prediction):
            seen.append(prediction)
            writer.write(prediction)

        result = evaluate_model(network, processor, FrameDataset(rows, processor), on_prediction=keep)
    return path, seen, result


def test_round_trip_is_exact(saved):
    path, seen, _ = saved
    stored = list(PredictionFile(path))
    assert [prediction.frame_id for prediction in stored] == [prediction.frame_id for prediction in seen]
    for mine, theirs in zip(stored, seen, strict=True):
        for name in ("pixel_indices", "masks", "scores", "labels", "semantic"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        assert mine.masks.dtype == bool and mine.pixel_indices.dtype == np.int64


def test_saved_predictions_give_the_networks_result(saved, rows):
    path, _, result = saved
    again = evaluate_predictions(PredictionFile(path), rows)
    assert json.dumps(again) == json.dumps(result)
    backwards = evaluate_predictions(PredictionFile(path), rows.select(range(4, -1, -1)))
    assert backwards["class_agnostic"]["all_ap"] == result["class_agnostic"]["all_ap"]
    assert "class_aware" not in evaluate_predictions(PredictionFile(path), rows, class_agnostic=True)
    assert "all_ap_50:95" in evaluate_predictions(PredictionFile(path), rows, include_95=True)["class_agnostic"]


def test_frame_without_predictions_and_without_semantics(rows, tmp_path):
    processor = readable_processor(class_aware=False)
    path = tmp_path / "predictions.parquet"
    dataset = FrameDataset(rows.select([0]), processor)

    def write_nothing(prediction):
        prediction.masks, prediction.semantic = prediction.masks[:0], None
        prediction.scores, prediction.labels = prediction.scores[:0], prediction.labels[:0]
        writer.write(prediction)

    with PredictionWriter(path, processor) as writer:
        evaluate_model(PerfectNetwork(processor), processor, dataset, on_prediction=write_nothing)
    (prediction,) = PredictionFile(path)
    assert prediction.masks.shape == (0, len(prediction.pixel_indices))
    result = evaluate_predictions(PredictionFile(path), rows.select([0]))
    assert result["class_agnostic"]["all_ap"] == 0.0
    assert "semantic" not in result


def test_frames_have_to_be_the_same(saved, rows):
    file = PredictionFile(saved[0])
    with pytest.raises(ValueError, match=r"0 of 3 frames have no prediction \[\], and 2 predictions have no frame"):
        evaluate_predictions(file, rows, limit=3)
    with pytest.raises(ValueError, match="the data set: 1 frames have the name of another"):
        evaluate_predictions(file, rows.select([0, 1, 2, 3, 4, 4]))


def test_pixels_have_to_lie_in_the_frame(saved, rows):
    path, _, _ = saved
    small = [frame_to_row(readable_frame(seed)) for seed in range(5)]
    crop = {name: getattr(readable_frame(0), name)[:30] for name in ("image", "depth", "instance", "semantic")}
    frame = readable_frame(0)
    # The principal point of the lower half of another picture, so that it lies in this one.
    intrinsics = frame.intrinsics - np.array([[0, 0, 0], [0, 0, 15], [0, 0, 0]])
    small[0] = frame_to_row(RGBDFrame(**crop, intrinsics=intrinsics, frame_id=frame.frame_id))
    data = datasets.Dataset.from_list(small, features=frame_features())
    with pytest.raises(ValueError, match="synthetic 0 has pixels .* expected 0..2399"):
        evaluate_predictions(PredictionFile(path), data)


def test_what_an_error_cut_short_is_no_file(saved, tmp_path):
    """The rows written until then would read as all of them, and replace a file that is whole."""
    _, seen, _ = saved
    path, processor = tmp_path / "p.parquet", readable_processor(class_aware=False)

    def write(predictions, then):
        with PredictionWriter(path, processor) as writer:
            for prediction in predictions:
                writer.write(prediction)
            then()

    with pytest.raises(ZeroDivisionError):
        write(seen[:1], lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []
    write(seen, list)
    with pytest.raises(ZeroDivisionError):
        write(seen[:1], lambda: 1 / 0)
    assert len(PredictionFile(path).frame_ids) == 5 and list(tmp_path.iterdir()) == [path]


def test_points_without_pixels_cannot_be_saved(saved, tmp_path):
    _, seen, _ = saved
    # One of them is enough.
    pixels = np.append(seen[0].pixel_indices[:-1], -1)
    prediction = type(seen[0])(**{**vars(seen[0]), "pixel_indices": pixels})
    with (
        PredictionWriter(tmp_path / "p.parquet", readable_processor(class_aware=False)) as writer,
        pytest.raises(ValueError, match="synthetic 0: points have no pixel"),
    ):
        writer.write(prediction)


def test_a_run_that_fails_leaves_no_file_that_reads_as_whole(saved, tmp_path):
    _, seen, _ = saved
    path = tmp_path / "p.parquet"
    with (
        pytest.raises(ZeroDivisionError),
        PredictionWriter(path, readable_processor(class_aware=False)) as writer,
    ):
        writer.write(seen[0])
        assert not path.exists()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_other_and_damaged_files_are_refused_by_name(saved, rows, tmp_path):
    path, _, _ = saved
    content = path.read_bytes()
    other = tmp_path / "other.parquet"
    rows.to_parquet(other)
    with pytest.raises(
        ValueError, match=r"other.parquet: not a file of saved predictions \(columns \['frame_id', 'image'"
    ):
        PredictionFile(other)
    with pytest.raises(ValueError, match="absent.parquet"):
        PredictionFile(tmp_path / "absent.parquet")
    damaged = tmp_path / "damaged.parquet"
    rng = np.random.default_rng(0)
    for trial in range(150):
        if trial % 2:
            damaged.write_bytes(content[: rng.integers(len(content))])
        else:
            changed = np.frombuffer(content, np.uint8).copy()
            changed[rng.integers(len(content), size=5)] ^= rng.integers(1, 256, 5, dtype=np.uint8)
            damaged.write_bytes(changed.tobytes())
        try:
            evaluate_predictions(PredictionFile(damaged), rows)
        except ValueError as error:
            assert "damaged.parquet" in str(error)


def small_prediction(name, points=9, semantic=True, **changes):
    """Two masks over a number of points that fills no whole bytes; the first pixel of the image is among them."""
    masks = np.random.default_rng(points).random((2, points)) < 0.5
    values = {"pixel_indices": np.arange(points), "masks": masks, "scores": np.array([0.9, 0.4], np.float32)}
    labels = np.zeros(points, int) if semantic else None
    return FramePrediction(name, **{**values, "labels": np.zeros(2, int), "semantic": labels, **changes})


def test_frames_are_written_in_groups(tmp_path):
    """Memory holds a group of them, not all."""
    path, processor = tmp_path / "p.parquet", readable_processor(class_aware=False)
    predictions = [small_prediction(f"frame {index}", 9 + index % 9) for index in range(65)]
    with PredictionWriter(path, processor) as writer:
        for prediction in predictions:
            writer.write(prediction)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [64, 1]
    assert metadata.row_group(0).column(2).compression == "ZSTD"
    # The order of the columns tells files of predictions from others.
    names = ["frame_id", "pixel_indices", "masks", "scores", "labels", "semantic"]
    assert metadata.schema.to_arrow_schema().names == names
    for stored, prediction in zip(PredictionFile(path), predictions, strict=True):
        np.testing.assert_array_equal(stored.masks, prediction.masks)


def rewritten(path, changes=None, metadata=None):
    """A file with other values in columns, or other settings of the processor in its metadata."""
    table = pq.read_table(path)
    for name, values in (changes or {}).items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    if metadata is not None:
        kept = json.loads(table.schema.metadata[b"bifusion_predictions"])
        kept["processor"] = metadata(kept["processor"])
        table = table.replace_schema_metadata({b"bifusion_predictions": json.dumps(kept)})
    pq.write_table(table, path)
    return PredictionFile(path)


@pytest.fixture
def small_file(tmp_path):
    path = tmp_path / "p.parquet"
    with PredictionWriter(path, readable_processor(class_aware=False)) as writer:
        writer.write(small_prediction("synthetic 0"))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [None]}, "p.parquet: frame 'synthetic 0' has an empty field"),
        ({"masks": [None]}, "p.parquet: frame 'synthetic 0' has an empty field"),
        ({"pixel_indices": [[None, *range(8)]]}, r"p.parquet: damaged \(.*1 nulls"),
        ({"masks": [b"abc"]}, "p.parquet: masks of synthetic 0 have 3 bytes; expected 2 x 2 for 9 points"),
        ({"pixel_indices": [[4800, *range(8)]]}, r"p.parquet: synthetic 0 has pixels 0..4800; expected\s+0..4799"),
        ({"pixel_indices": [[-1, *range(8)]]}, "p.parquet: synthetic 0 has pixels -1..7"),
        ({"scores": [[0.5, float("nan")]]}, "p.parquet: synthetic 0: pred_scores has 1 values that are not finite"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused_by_name(small_file, rows, changes, message):
    with pytest.raises(ValueError, match=message):
        evaluate_predictions(rewritten(small_file, changes), rows.select([0]))


def test_the_processor_comes_back_and_what_is_none_is_refused(small_file):
    assert PredictionFile(small_file).processor().part_gap == 0.05
    # Files from before masks were taken apart.
    old = rewritten(small_file, metadata=lambda kept: {k: v for k, v in kept.items() if k != "part_gap"})
    assert old.processor().part_gap == 0.0
    strange = rewritten(small_file, metadata=lambda kept: {**kept, "num_points": "many"})
    with pytest.raises(ValueError, match="p.parquet: malformed metadata"):
        strange.processor()


def test_a_damaged_page_is_named(small_file):
    place = pq.read_metadata(small_file).row_group(0).column(2).data_page_offset
    content = small_file.read_bytes()
    small_file.write_bytes(content[:place] + b"\xff" * 40 + content[place + 40 :])
    with pytest.raises(ValueError, match="p.parquet: damaged"):
        list(PredictionFile(small_file))


def test_frames_without_points_and_frames_without_labels(small_file, rows):
    path = small_file.with_name("none.parquet")
    with PredictionWriter(path, readable_processor(class_aware=False)) as writer:
        writer.write(small_prediction("synthetic 0", 0))
    result = evaluate_predictions(PredictionFile(path), rows.select([0]))
    assert result["protocol"]["num_frames"] == 1 and result["class_agnostic"]["num_predictions"] == 0
    unlabelled = datasets.Dataset.from_list(
        [frame_to_row(readable_frame(0, instance=None))], features=frame_features()
    )
    with pytest.raises(ValueError, match="synthetic 0: no instance labels"):
        evaluate_predictions(PredictionFile(small_file), unlabelled)
