import multiprocessing
import os
import signal
import time

import pytest
from processes import another_in

from bifusion_hf.io.locks import LOCK_FILE, FolderInUseError, sole_use


def test_the_second_is_refused_and_told_who_is_there(tmp_path):
    with another_in(tmp_path / "out") as process:
        message = rf"out is in use by process {process.pid} on .+ since \d{{4}}-"
        # A refused one changes nothing for the next.
        for _ in range(2):
            with pytest.raises(FolderInUseError, match=message), sole_use(tmp_path / "out"):
                pytest.fail("two at once")
        with sole_use(tmp_path / "other"):
            assert (tmp_path / "other" / LOCK_FILE).is_file()


def test_a_dead_one_holds_nothing(tmp_path):
    with another_in(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert (tmp_path / LOCK_FILE).exists()
        with sole_use(tmp_path):
            pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_what_ends_leaves_no_file_and_the_next_may_work(tmp_path):
    with pytest.raises(KeyError), sole_use(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with another_in(tmp_path):
        pass


def test_forked_children_do_not_hold_it(tmp_path):
    """Loader workers outlive a killed training for some seconds; the next may start at once."""
    context = multiprocessing.get_context("fork")
    with sole_use(tmp_path):
        child = context.Process(target=time.sleep, args=(60,), daemon=True)
        child.start()
    try:
        with another_in(tmp_path):
            assert child.is_alive()
    finally:
        child.kill()


def count(folder, turns):
    for _ in range(turns):
        while True:
            try:
                with sole_use(folder):
                    value = int((folder / "value").read_text())
                    time.sleep(0.0005)
                    (folder / "value").write_text(str(value + 1))
                break
            except FolderInUseError:
                time.sleep(0.0005)


def test_no_two_are_in_at_once_though_the_file_comes_and_goes(tmp_path):
    (tmp_path / "value").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count, args=(tmp_path, 40)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert (tmp_path / "value").read_text() == "160"
