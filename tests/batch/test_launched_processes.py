import pickle
from datetime import timedelta
from types import SimpleNamespace

import pytest

from bifusion_hf.batch import Processes, launched_processes
from bifusion_hf.batch.processes import group_options


SHARDS = {name: name.upper() for name in "abcde"}


def test_a_program_that_was_started_alone_is_one_process_with_all_shards(monkeypatch):
    def ask(_):
        pytest.fail("there is nobody to ask")

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("broadcast_object_list", "gather_object"):
        monkeypatch.setattr(f"accelerate.utils.{name}", ask)
    alone = launched_processes()
    assert alone == Processes(0, 1, None) and alone.is_main
    assert alone.share(SHARDS) == SHARDS and alone.gather(3) == [3]


def test_the_shards_of_the_main_process_are_divided(monkeypatch):
    def broadcast(box):
        # As it is sent.
        assert pickle.loads(pickle.dumps(box)) == [[("of", "another view")]]
        box[0] = list(SHARDS.items())

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    first, second = (Processes(rank, 2).share({"of": "another view"}) for rank in range(2))
    assert first == {"a": "A", "c": "C", "e": "E"} and second == {"b": "B", "d": "D"}
    assert not Processes(1, 2).is_main


def test_values_of_all_processes_come_together(monkeypatch):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda values: [*values, "of the other"])
    assert Processes(0, 2).gather("mine") == ["mine", "of the other"]


def test_processes_are_those_of_the_launch(monkeypatch):
    """None gives up while another is at its last shard."""
    seen = {}

    def state(**options):
        seen.update(options)
        return SimpleNamespace(num_processes=2, process_index=1, device="cpu")

    monkeypatch.setattr("accelerate.PartialState", state)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched_processes(cpu=True) == Processes(1, 2, "cpu")
    assert seen["cpu"] and seen["timeout"] == group_options().timeout >= timedelta(days=1)
    for is_there, cpu in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr("torch.accelerator.is_available", lambda is_there=is_there: is_there)
        launched_processes(**({"cpu": True} if cpu else {}))
        assert seen["cpu"] == (cpu or not is_there)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes were launched, but Accelerate runs 2"):
        launched_processes(cpu=True)
