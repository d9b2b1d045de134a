"""Making the next item while the last one is used."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any


_END = object()


def one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The items in their order; while one is used, a thread makes the next.

    Args:
        items: At most one more of them is asked for than was given out; an error comes where its item would.
    """
    iterator = iter(items)
    following = _Call(iterator)
    while (item := following.result()) is not _END:
        following = _Call(iterator)
        yield item


class _Call:
    """The next item of an iterator, made in a thread, which does not keep the process alive."""

    def __init__(self, iterator: Iterator[Any]):
        self._iterator, self._item, self._error = iterator, _END, None
        self._thread = threading.Thread(target=self._run, name="one ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._item = next(self._iterator, _END)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._item
