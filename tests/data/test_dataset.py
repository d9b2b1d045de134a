import datasets
import numpy as np
import pytest
import torch
from frame_factory import make_frame
from torch.utils.data import DataLoader

from bifusion_hf.data.augmentation import AugmentationConfig, JointAugmentation
from bifusion_hf.data.collator import BiFusionCollator
from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import frame_features, frame_from_row, frame_to_row, load_frames
from bifusion_hf.data.mixture import Mixture
from bifusion_hf.processing_bifusion import BiFusionProcessor


ROWS = 7
SUPERPOINTS = np.arange(120 * 160).reshape(120, 160) // 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set folder of two files, four and three rows."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "data").mkdir()
    rows = [frame_to_row(make_frame(seed=seed, superpoints=SUPERPOINTS)) for seed in range(ROWS)]
    for shard, part in enumerate((rows[:4], rows[4:])):
        data = datasets.Dataset.from_list(part, features=frame_features())
        data.to_parquet(str(folder / "data" / f"train-{shard:05d}-of-00002.parquet"))
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return load_frames(folder, "train")


@pytest.fixture(scope="module")
def processor():
    return BiFusionProcessor(num_points=600)


def assert_same(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_evaluation_samples_are_those_of_inference(rows, processor):
    data = FrameDataset(rows, processor)
    assert len(data) == ROWS
    sample = data[3]
    assert sample["alignment_error"] < 2 / 255
    expected = processor.prepare_frame(make_frame(seed=3, superpoints=SUPERPOINTS))
    # The stored depth has steps of a millimetre.
    np.testing.assert_array_equal(sample["pixel_indices"], expected["pixel_indices"])
    np.testing.assert_allclose(sample["points"], expected["points"], atol=2e-3)
    data.set_epoch(5)
    assert_same(data[3], sample)
    assert_same(data[-4], sample)
    with pytest.raises(IndexError):
        data[ROWS]


def test_frames_can_stand_for_rows(processor):
    frames = [make_frame(seed=seed, superpoints=SUPERPOINTS) for seed in range(2)]
    sample = FrameDataset(frames, processor)[1]
    assert sample["frame_id"] == "synthetic 1"


def test_training_draws_follow_seed_epoch_and_row(rows, processor):
    def build(seed=0, epoch=0):
        data = FrameDataset(rows, processor, training=True, augmentation=JointAugmentation(), seed=seed)
        data.set_epoch(epoch)
        return data

    first = build()
    assert_same(first[2], build()[2])
    # The order in which rows are read does not matter.
    again = build()
    again[5], again[0]
    assert_same(first[2], again[2])
    reference = first[2]
    for other in (build(seed=1)[2], build(epoch=1)[2], first[3]):
        assert not np.array_equal(reference["pixel_indices"], other["pixel_indices"])
        assert reference["query_seed"] != other["query_seed"]


def test_the_points_of_a_sample_are_drawn_by_seed_epoch_and_row(rows, processor):
    data = FrameDataset(rows, processor, training=True, seed=7)
    expected = processor.prepare_frame(frame_from_row(rows[3]), np.random.default_rng([7, 2, 3]))
    np.testing.assert_array_equal(data[2, 3]["pixel_indices"], expected["pixel_indices"])
    assert_same(
        FrameDataset(rows, processor, training=True)[1], FrameDataset(rows, processor, training=True, seed=0)[1]
    )
    # Of the whole range: seeds of a few values would repeat the choice of queries.
    seeds = [data[0, index]["query_seed"] for index in range(ROWS)]
    assert {type(seed) for seed in seeds} == {int} and 2**61 < max(seeds) < 2**62


def test_a_key_with_its_epoch_stands_beside_the_epoch_that_is_set(rows, processor):
    data = FrameDataset(rows, processor, training=True)
    first, asked = data[2], data[4, 2]
    assert_same(data[2], first)
    data.set_epoch(4)
    assert_same(asked, data[2])
    assert_same(data[0, 2], first)


def test_alignment_is_measured_between_geometry_and_jitter(rows, processor):
    strong = AugmentationConfig(brightness=0.9, contrast=0.9, crop_probability=0.0)
    data = FrameDataset(rows, processor, training=True, augmentation=JointAugmentation(strong))
    plain = FrameDataset(rows, processor)
    samples = [data[index] for index in range(ROWS)]
    assert max(sample["alignment_error"] for sample in samples) < 2 / 255
    changes = [abs(sample["image"].mean() - plain[index]["image"].mean()) for index, sample in enumerate(samples)]
    assert max(changes) > 10


def test_augmentation_without_training_is_refused(rows, processor):
    with pytest.raises(ValueError, match="augmentation is given while training is False"):
        FrameDataset(rows, processor, augmentation=JointAugmentation())


def broken_rows(rows):
    rows = [dict(row) for row in rows]
    rows[2]["depth"] = {"bytes": b"not a picture", "path": None}
    rows[4]["intrinsics"] = None
    return rows


def test_a_broken_row_is_named(rows, processor):
    data = FrameDataset(broken_rows(rows), processor)
    with pytest.raises(ValueError, match=r"row 2 \(frame 'synthetic 2'\) is broken: .*depth: is no readable picture"):
        data[2]
    with pytest.raises(ValueError, match=r"row 4 \(frame 'synthetic 4'\) is broken: .*row has no intrinsics"):
        data[4]
    assert data[3]["frame_id"] == "synthetic 3"


def test_broken_rows_are_skipped_only_if_asked(rows, processor, caplog):
    data = FrameDataset(broken_rows(rows), processor, skip_broken=True)
    loader = DataLoader(data, batch_size=3, collate_fn=BiFusionCollator(processor))
    names = [batch["frame_ids"] for batch in loader]
    assert names == [["synthetic 0", "synthetic 1"], ["synthetic 3", "synthetic 5"], ["synthetic 6"]]
    assert "row 2 (frame 'synthetic 2') is broken" in caplog.text
    assert "skipped" in caplog.text


def test_workers_give_the_same_samples_and_follow_the_epoch(rows, processor):
    data = FrameDataset(rows, processor, training=True, augmentation=JointAugmentation(), seed=3)

    def load(**options):
        return DataLoader(data, batch_size=2, collate_fn=BiFusionCollator(processor), **options)

    workers = load(num_workers=2, persistent_workers=True)
    for epoch in range(2):
        data.set_epoch(epoch)
        for one, two in zip(load(), workers, strict=True):
            assert one["frame_ids"] == two["frame_ids"]
            assert torch.equal(one["points"], two["points"])
            assert torch.equal(one["query_seeds"], two["query_seeds"])


def test_a_streamed_row_is_drawn_by_its_name_whoever_reads_it(folder, rows, processor):
    stream = list(load_frames(folder, "train", streaming=True))
    data = FrameDataset(stream, processor, training=True, augmentation=JointAugmentation(), seed=1)
    sample = data.prepare_streamed(stream[2], 0, 2)
    assert sample["frame_id"] == "synthetic 2"
    other_place = FrameDataset([], processor, training=True, augmentation=JointAugmentation(), seed=1)
    assert_same(other_place.prepare_streamed(rows[2], 0, 7), sample)
    assert_same(other_place.prepare_streamed(frame_from_row(rows[2]), 0, 8), sample)
    for other in (data.prepare_streamed(stream[2], 1, 2), data.prepare_streamed(stream[3], 0, 2)):
        assert not np.array_equal(other["pixel_indices"], sample["pixel_indices"])


def test_broken_rows_of_a_stream(rows, processor, caplog):
    broken = broken_rows(rows)[4]
    with pytest.raises(ValueError, match=r"row 1 of the stream \(frame 'synthetic 4'\) is broken"):
        FrameDataset([], processor).prepare_streamed(broken, 0, 1)
    assert FrameDataset([], processor, skip_broken=True).prepare_streamed(broken, 0, 1) is None
    assert "'synthetic 4') is broken" in caplog.text


def test_rows_of_a_mixture_are_named_by_their_source(rows, processor):
    mixture = Mixture({"plain": rows, "broken": broken_rows(rows)}, {"plain": 1, "broken": 1})
    data = FrameDataset(mixture, processor)
    assert len(data) == 2 * ROWS and data.mixture is mixture and FrameDataset(rows, processor).mixture is None
    assert_same(data[ROWS + 3], FrameDataset(rows, processor)[3])
    with pytest.raises(ValueError, match=r"row 2 of broken \(frame 'synthetic 2'\) is broken"):
        data[ROWS + 2]
