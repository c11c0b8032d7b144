import threading
import time

import jax
import pytest

from jaxcomp.compressed.workers import ALONE, Workers, usual_number


@pytest.mark.parametrize("workers", [ALONE, Workers(3), Workers(3, held=2)])
def test_results_are_in_order_and_what_is_held_is_bounded(workers):
    sizes = [1, 4, 2, 2, 1, 3, 4, 1]
    lock, held, most = threading.Lock(), [0], [0]

    def visit(number):
        with lock:
            held[0] += sizes[number]
            most[0] = max(most[0], held[0])
        time.sleep(0.002 * (number % 3))
        with lock:
            held[0] -= sizes[number]
        return -number

    found = list(workers.each(visit, range(8), sizes))
    assert found == [-number for number in range(8)]
    assert most[0] <= 8 if workers.number == 3 else most[0] == 4


def test_two_work_at_a_time_where_both_fit():
    # Each waits for the other: one after the other would never end.
    meet = threading.Barrier(2, timeout=60)
    assert list(Workers(2, held=2).each(lambda _: meet.wait() >= 0, range(2), [1, 1])) == [
        True,
        True,
    ]


def test_results_that_nobody_has_taken_are_held():
    """The first is slow: of the others as many are visited as fit beside it, and no more."""
    started, seen, released = [], [], threading.Event()

    def visit(number):
        started.append(number)
        if number == 0:
            assert released.wait(timeout=60)
        if number == 2:
            seen.extend(started)
            released.set()
        return number

    assert list(Workers(2, held=2).each(visit, range(6), [2, 1, 1, 1, 1, 1])) == list(range(6))
    assert seen == [0, 1, 2]


def test_settings_of_the_caller_hold_and_errors_reach_it():
    with jax.enable_x64(True):
        found = Workers(2).each(lambda _: jax.numpy.arange(2.0).dtype.name, range(2), [1, 9])
        assert list(found) == ["float64", "float64"]

    def fail(number):
        if number == 1:
            raise ValueError("the second one")
        return number

    with pytest.raises(ValueError, match="the second one"):
        list(Workers(2).each(fail, range(5), [1] * 5))


def test_usual_number_is_a_few():
    assert 1 <= usual_number() <= 8
