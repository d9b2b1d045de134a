import json

import datasets
import numpy as np
import pytest
from perfect_network import PerfectNetwork, readable_frame, readable_processor

from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import RGBDFrame, frame_features, frame_to_row
from bifusion_hf.evaluation import PredictionFile, PredictionWriter, evaluate_model, evaluate_predictions


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
        assert mine.masks.dtype == bool


def test_saved_predictions_give_the_networks_result(saved, rows):
    path, _, result = saved
    again = evaluate_predictions(PredictionFile(path), rows)
    assert json.dumps(again) == json.dumps(result)
    backwards = evaluate_predictions(PredictionFile(path), rows.select(range(4, -1, -1)))
    assert backwards["class_agnostic"]["all_ap"] == result["class_agnostic"]["all_ap"]
    assert "class_aware" not in evaluate_predictions(PredictionFile(path), rows, class_agnostic=True)


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
    prediction = type(seen[0])(**{**vars(seen[0]), "pixel_indices": np.full(3, -1)})
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
    with pytest.raises(ValueError, match="other.parquet: not a file of saved predictions"):
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
