import itertools
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from launch_counter import DEVICE, LaunchCounter

from bifusion_hf.data.mixture import Mixture
from bifusion_hf.recipe.arguments import DataArguments
from bifusion_hf.training import data_loading
from bifusion_hf.training.data_loading import (
    StreamedFrames,
    UpdateSampler,
    build_loader,
    check_readers,
    count_samples,
    stream_readers,
    take_window,
    to_device,
    updates_per_epoch,
)


def test_every_update_is_a_slice_of_its_epochs_permutation():
    sampler = UpdateSampler(num_rows=10, frames_per_update=4, total_updates=5, seed=3)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 20 and sampler.updates_per_epoch == 2
    assert [epoch for epoch, _ in keys] == [0] * 8 + [1] * 8 + [2] * 4
    for epoch in (0, 1):
        rows = [row for key, row in keys if key == epoch]
        assert sampler.epoch_keys(epoch)[:8] == [(epoch, row) for row in rows] and len(set(rows)) == 8
    assert [row for _, row in sampler.epoch_keys(0)] != [row for _, row in sampler.epoch_keys(1)]
    # The order is that of the first release: a run that began with it goes on.
    assert [row for _, row in sampler.epoch_keys(1)] == [1, 9, 5, 6, 4, 3, 8, 0, 2, 7]
    assert list(UpdateSampler(10, 4, 5, seed=4)) != keys


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4])
def test_a_resumed_sampler_goes_on_in_the_middle_of_an_epoch(start):
    keys = list(UpdateSampler(10, 4, 5, seed=3))
    resumed = UpdateSampler(10, 4, 5, seed=3, start_update=start)
    assert list(resumed) == keys[4 * start :] and len(resumed) == len(keys) - 4 * start


MIXTURE = Mixture({"a": range(7), "b": range(3)}, {"a": 1, "b": 1})


@pytest.mark.parametrize("start", [1, 2, 3, 4])
def test_a_mixture_resumes_in_the_middle_of_an_epoch(start):
    keys = list(UpdateSampler(10, 4, 5, seed=3, mixture=MIXTURE))
    assert [key for epoch in (0, 1, 2) for key in MIXTURE.epoch_keys(3, epoch)[:8]][:20] == keys
    assert list(UpdateSampler(10, 4, 5, seed=3, start_update=start, mixture=MIXTURE)) == keys[4 * start :]


def test_a_mixture_is_read_alike_by_any_number_of_workers():
    keys = list(UpdateSampler(10, 4, 5, seed=3, mixture=MIXTURE))
    for workers in (0, 2):
        loader = build_loader(
            Keys(), UpdateSampler(10, 4, 5, seed=3, mixture=MIXTURE), 2, collate_fn=list, num_workers=workers
        )
        assert [key for batch in loader for key in batch] == keys


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="3 training frames do not fill one update of 4"):
        updates_per_epoch(3, 4)
    assert [updates_per_epoch(rows, 4) for rows in (4, 7, 8)] == [1, 1, 2]


class Keys(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, key):
        return key


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_leaves_torchs_generator_alone(workers):
    sampler = UpdateSampler(10, 4, 5, seed=0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches = list(build_loader(Keys(), sampler, 2, collate_fn=list, num_workers=workers))
    assert torch.equal(torch.rand(3), expected)
    assert [key for batch in batches for key in batch] == list(sampler)


@pytest.fixture
def stream(tmp_path):
    for shard in range(4):
        rows = [{"frame_id": f"{shard}_{index}"} for index in range(6)]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"train-{shard}.parquet"))
    files = sorted(str(path) for path in tmp_path.glob("*.parquet"))
    return datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)


def prepare(row, epoch, position):
    return epoch, row["frame_id"]


def read(stream, batches, workers, **kwargs):
    data = StreamedFrames(stream, prepare, 2, seed=1, shuffle_buffer=3, **kwargs)
    loader = iter(build_loader(data, None, 2, collate_fn=list, num_workers=workers))
    return [next(loader) for _ in range(batches)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 7, 14])
def test_a_stream_resumes_exactly(stream, workers, start):
    whole = read(stream, 20, workers)
    assert read(stream, 20 - start, workers, start_batch=start) == whole[start:]


def test_a_stream_gives_each_row_once_an_epoch_over_processes_and_workers(stream):
    seen = [
        name
        for process in range(2)
        for batch in read(stream, 6, 2, num_processes=2, process_index=process)
        for epoch, name in batch
        if epoch == 0
    ]
    assert len(seen) == len(set(seen)) == 24


def test_a_stream_goes_round_in_another_order_each_time(stream):
    """Each row once an epoch, with its epoch and its place in it."""
    rows = iter(StreamedFrames(stream, lambda *given: given, 2, seed=1, shuffle_buffer=24))
    taken = [next(rows) for _ in range(50)]
    assert [epoch for _, epoch, _ in taken] == [0] * 24 + [1] * 24 + [2] * 2
    assert [position for _, _, position in taken] == [*range(24), *range(24), 0, 1]
    first, second = ([row["frame_id"] for row, epoch, _ in taken if epoch == wanted] for wanted in (0, 1))
    assert first != second and sorted(first) == sorted(second) == sorted({*first})
    other = iter(StreamedFrames(stream, lambda *given: given, 2, seed=2, shuffle_buffer=24))
    assert [next(other)[0]["frame_id"] for _ in range(24)] != first
    # Of many rows 256 are shuffled at a time, as a recipe has it.
    assert StreamedFrames(stream, prepare, 2).shuffle_buffer == DataArguments().shuffle_buffer == 256


@pytest.mark.parametrize("worker", [None, SimpleNamespace(num_workers=2, id=1)])
def test_a_worker_alone_forgets_the_lock_that_it_was_forked_with(stream, worker, monkeypatch):
    forgotten = []
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: worker)
    monkeypatch.setattr("fsspec.asyn.reset_lock", lambda: forgotten.append(True))
    next(iter(StreamedFrames(stream, prepare, 2)))
    assert forgotten == [True] * (worker is not None)


def test_a_stream_without_rows_is_refused(stream):
    """It would be read for ever."""
    with pytest.raises(ValueError, match="shard 0 of the streamed data set has no rows"):
        next(iter(StreamedFrames(stream.filter(lambda row: False), prepare, 2)))


def test_each_reader_has_a_shard_of_its_own(stream, monkeypatch):
    """Seen within this process: a worker asks torch which one it is."""
    first = []
    for process, worker in itertools.product(range(2), range(2)):
        worker_info = SimpleNamespace(num_workers=2, id=worker)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda worker_info=worker_info: worker_info)
        rows = iter(StreamedFrames(stream, prepare, 2, num_processes=2, process_index=process, shuffle_buffer=1))
        first.append(next(rows)[1].partition("_")[0])
    assert sorted(first) == ["0", "1", "2", "3"]


def test_a_stream_with_too_few_shards_is_refused(stream):
    data = StreamedFrames(stream, prepare, 2, num_processes=8)
    with pytest.raises(ValueError, match="4 shards for 8 readers"):
        next(iter(data))
    # A shard for each is enough.
    assert next(iter(StreamedFrames(stream, prepare, 2, num_processes=4, process_index=3)))


def test_a_batch_goes_to_the_device_without_waiting_and_without_what_training_does_not_read():
    batch = {
        "points": torch.rand(2, 5, 3),
        "mask_labels": [torch.ones(3, 5, dtype=torch.bool), torch.ones(1, 5, dtype=torch.bool)],
        "superpoint_maps": [torch.zeros(4, 6), None],
        "pixel_indices": torch.zeros(2, 5),
        "frame_ids": ["a", "b"],
    }
    with LaunchCounter() as counter:
        sent = to_device(batch, DEVICE)
        assert to_device(None, DEVICE) is None
    assert counter.waits.total() == 0 and counter.launches.total() == 3
    assert list(sent) == list(batch)
    assert sent["points"].device == DEVICE and all(mask.device == DEVICE for mask in sent["mask_labels"])
    for name in ("superpoint_maps", "pixel_indices", "frame_ids"):
        assert sent[name] is batch[name] or sent[name] == batch[name]


def test_a_stream_does_not_go_on_with_other_processes():
    """Readers of all processes share its shards; rows by index go on with any number."""
    streamed = DataArguments(streaming=True, num_workers=2)
    checkpoint, here = Path("checkpoint-4"), stream_readers(streamed, 2, 3)
    check_readers(checkpoint, {"num_processes": 3, "stream": here}, here)
    # Checkpoints of today, and those that told less.
    older = {name: value for name, value in here.items() if name != "processes"}
    for state in ({"stream": {**here, "processes": 2}}, {"stream": older}, {}):
        with pytest.raises(ValueError, match="checkpoint-4 has processes 2, this run 3: other readers of a stream"):
            check_readers(checkpoint, {"num_processes": 2, **state}, here)
    assert here == {"data.num_workers": 2, "data.shuffle_buffer": 256, "training.batch_size": 2, "processes": 3}
    # A process without workers reads as one.
    assert stream_readers(DataArguments(streaming=True, num_workers=0), 5, 1)["data.num_workers"] == 1
    by_index = stream_readers(DataArguments(), 2, 3)
    assert by_index == {}
    for state in ({"stream": {}}, {}):
        check_readers(checkpoint, {"num_processes": 2, **state}, by_index)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_rows_by_index_are_shared_by_accelerate_and_a_stream_by_itself(monkeypatch, device, pinned):
    made, prepared = [], []
    accelerator = SimpleNamespace(
        device=torch.device(device),
        prepare_data_loader=lambda loader, **options: prepared.append((loader, options)) or [],
    )
    monkeypatch.setattr(data_loading, "build_loader", lambda *given, **options: made.append((given, options)) or [])
    data = DataArguments(num_workers=0)
    for sampler in ("sampler", None):
        assert list(data_loading.train_batches("rows", sampler, 4, list, data, accelerator)) == []
    options = {"collate_fn": list, "num_workers": 0, "prefetch_factor": None, "pin_memory": pinned}
    assert made == [(("rows", "sampler", 4), options), (("rows", None, 4), options)]
    assert prepared == [([], {"device_placement": False})]


def test_samples_are_counted_over_batches_and_processes():
    def batch(points, visible=None, labelled=1):
        mask = torch.zeros(2, 5, dtype=torch.bool)
        mask[0, :points] = True
        shown = {} if visible is None else {"point_visible": torch.arange(10).view(2, 5) % 5 < visible}
        return {"point_mask": mask, "labelled": labelled, **shown}

    def count(batch):
        return {"loss_a": torch.tensor(2), "loss_b": torch.tensor(batch["labelled"])}

    totals = {"sum": lambda values: values + torch.tensor([10, 20, 30, 40])}
    accelerator = SimpleNamespace(reduce=lambda values, how: totals[how](values))
    # Points beyond the mask are none, visible or not.
    window = [batch(4, visible=3), batch(5, labelled=0), batch(3, visible=5, labelled=7)]
    total, last = count_samples(window, count, accelerator)
    assert total == {"loss_a": 6 + 10, "loss_b": 8 + 20, "points": 12 + 30, "visible_points": 3 + 3 + 40}
    assert last == {"loss_a": 2, "loss_b": 7, "points": 3, "visible_points": 3}


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        # Batches that are taken, how many are missing in all, and whole frames that are left out.
        ("ab", 2, ("ab", 0, [])),
        ("a.", 2, ("a", 1, ["left there"])),
        ("ab", 1, ("a", 1, ["b1", "b2", "left there"])),
        ("ab", 0, ("", 2, ["a1", "a2", "b1", "b2", "left there"])),
        (".b", 1, ("b", 2, ["left there"])),
        ("..", 0, ("", 4, ["left there"])),
    ],
)
def test_processes_take_as_many_batches_as_the_one_with_the_fewest(monkeypatch, here, there, expected):
    monkeypatch.setattr(data_loading, "gather_object", lambda names: [*names, "left there"])
    accelerator = SimpleNamespace(device="cpu", gather=lambda left: torch.cat([left, torch.tensor([there])]))
    batches = iter([None if n == "." else {"n": n, "frame_ids": [f"{n}1", f"{n}2"]} for n in here + "c"])
    window, missing, whole = take_window(batches, 2, accelerator, may_lack=True)
    assert ("".join(batch["n"] for batch in window), missing, whole) == expected
    # No more than an update's batches are taken.
    assert next(batches)["n"] == "c"


def test_where_no_batch_may_lack_nobody_is_asked():
    assert take_window(iter([{"n": 1}, {"n": 2}, {"n": 3}]), 2, None, may_lack=False) == ([{"n": 1}, {"n": 2}], 0, [])
