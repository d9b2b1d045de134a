import threading
import time

import pytest

from bifusion_hf.io.ahead import one_ahead


def test_items_come_in_order():
    assert list(one_ahead(iter(range(50)))) == list(range(50))
    assert list(one_ahead([])) == []
    assert list(one_ahead([None, None])) == [None, None]


def test_the_next_item_is_made_while_the_last_is_used_and_no_more():
    made = []
    begun = threading.Event()

    def items():
        for index in range(4):
            made.append((index, threading.current_thread()))
            if index == 1:
                begun.set()
            yield index

    found = one_ahead(items())
    assert made == []
    assert next(found) == 0
    assert begun.wait(10), "the next item waits until it is asked for"
    time.sleep(0.05)
    assert [index for index, _ in made] == [0, 1]
    assert all(thread is not threading.current_thread() and thread.daemon for _, thread in made)
    assert list(found) == [1, 2, 3]


def test_an_error_comes_in_its_items_place():
    def items():
        yield 1
        yield 2
        raise ValueError("frame 3 is broken")

    found = one_ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="frame 3 is broken"):
        next(found)


def test_a_source_that_blocks_does_not_hold_what_stops_early():
    release = threading.Event()

    def items():
        yield 1
        release.wait(30)
        yield 2

    found = one_ahead(items())
    assert next(found) == 1
    begin = time.monotonic()
    found.close()
    assert time.monotonic() - begin < 5
    release.set()
