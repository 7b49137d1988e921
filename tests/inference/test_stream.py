"""Work ahead of a consumer: order, bounds, errors in their turn, and the end of the threads."""

import threading
import time

import pytest

from m2det_jax.inference.stream import ahead, in_batches, until_error


def numbers(count, taken):
    for i in range(count):
        taken.append(i)
        yield i


def test_order_and_how_far_it_is_ahead():
    taken = []

    def slow_first(i):
        time.sleep(0.05 if i == 0 else 0)
        return 10 * i

    results = ahead(slow_first, numbers(20, taken), threads=3, most=4)
    assert taken == []
    assert next(results) == 0 and len(taken) == 5
    assert list(results) == [10 * i for i in range(1, 20)]


def test_an_error_of_the_function_comes_in_its_turn():
    results = ahead(lambda i: 1 // (3 - i), range(9), threads=2, most=5)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_of_the_elements_comes_after_those_before_it():
    def broken():
        yield from range(4)
        raise KeyError("camera")

    results = ahead(lambda i: i, broken(), threads=2, most=9)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="camera"):
        next(results)


def test_closing_ends_the_threads_and_the_elements():
    ended = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            ended.append(True)

    results = ahead(lambda i: i, endless(), threads=2, most=3)
    next(results)
    results.close()
    assert ended and not [t for t in threading.enumerate() if t.name.startswith("images")]


def test_batches_and_an_error_inside_of_one():
    assert list(in_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_batches([], 2)) == []
    errors = []
    found = in_batches(until_error((1 // (3 - i) for i in range(9)), errors), 2)
    assert list(found) == [[0, 0], [1]] and isinstance(errors[0], ZeroDivisionError)
