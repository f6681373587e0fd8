from __future__ import annotations

import os
import threading
from contextlib import closing
from itertools import count

import pytest

from index.errors import InvalidArgumentError
from index.parallel import AHEAD, check_workers, in_order


def test_results_come_in_the_order_of_their_inputs_whichever_is_done_first():
    turns = [threading.Event() for _ in range(4)]
    turns[3].set()

    def backwards(number: int) -> int:
        assert turns[number].wait(60)
        if number:
            turns[number - 1].set()
        return 10 * number

    assert list(in_order(backwards, range(4), 4)) == [0, 10, 20, 30]


def test_as_many_work_at_a_time_as_there_are_workers():
    together = threading.Barrier(3)
    assert list(in_order(lambda _: together.wait(60) >= 0, range(9), 3)) == [True] * 9


def test_only_a_few_inputs_are_drawn_ahead_and_by_the_one_who_asks():
    drawn = []

    def inputs():
        for number in count():
            drawn.append(threading.get_ident())
            yield number

    with closing(in_order(str, inputs(), 2)) as results:
        for number in range(20):
            assert next(results) == str(number)
            assert len(drawn) == number + 1 + 2 * AHEAD
    assert set(drawn) == {threading.get_ident()}


def test_an_error_comes_in_its_turn():
    results = in_order(lambda number: 1 // number, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_waits_for_what_is_under_way_and_drops_the_rest():
    under_way, go_on, done = threading.Event(), threading.Event(), []

    def work(number: int) -> None:
        if number == 1:
            under_way.set()
            assert go_on.wait(60)
        done.append(number)

    results = in_order(work, count(), 1)
    next(results)
    assert under_way.wait(60)
    closing_it = threading.Thread(target=results.close)
    closing_it.start()
    while closing_it.is_alive() and not results.gi_running:
        pass
    go_on.set()
    closing_it.join()
    assert done == list(range(len(done)))
    assert 2 <= len(done) <= 1 + AHEAD
    assert not [each for each in threading.enumerate() if each.name.startswith("parallel")]


def test_no_input_is_no_result():
    assert list(in_order(str, [], 2)) == []


def test_workers_default_to_the_cores():
    assert check_workers(None) == os.cpu_count()
    assert check_workers(3) == 3
    for workers in (0, -1):
        with pytest.raises(InvalidArgumentError, match=f"workers is {workers}"):
            check_workers(workers)
