"""Work ahead of a consumer: in threads, in order, in batches, and with errors in their turn."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def ahead(
    function: Callable[[_T], _R], elements: Iterable[_T], *, threads: int, most: int
) -> Generator[_R, None, None]:
    """Yields function(element) of each element, in order, computed by threads before it is asked.

    An error, of the function or the elements, comes after all that precedes it. Close the iterator
    to end the threads.

    Args:
        threads: number of them; `elements` is only used in the caller's.
        most: so many elements are taken ahead.
    """
    errors: list[Exception] = []
    waiting: collections.deque[concurrent.futures.Future[_R]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(threads, "images")
    try:
        for element in until_error(elements, errors):
            waiting.append(pool.submit(function, element))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
    if errors:
        raise errors[0]


def until_error(elements: Iterable[_T], errors: list[Exception]) -> Iterator[_T]:
    """Yields the elements up to an error, which ends them and is added to a list."""
    try:
        yield from elements
    except Exception as error:
        errors.append(error)


def in_batches(elements: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yields lists of `size` elements; the last may be shorter."""
    iterator = iter(elements)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
