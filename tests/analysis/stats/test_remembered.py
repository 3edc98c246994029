"""A value is computed once for each run and its other arguments, and goes with the run."""

import gc
import weakref

import pytest

from analysis.stats.remembered import remembered


class Run:
    pass


def test_each_value_is_computed_once_for_each_run():
    asked = []

    @remembered
    def value(run, number, *, name=""):
        asked.append((number, name))
        return object()

    first, second = Run(), Run()
    assert value(first, 1) is value(first, 1)
    assert value(first, 2) is not value(first, 1)
    assert value(first, 1, name="a") is value(first, 1, name="a")
    assert value(second, 1) is not value(first, 1)
    assert asked == [(1, ""), (2, ""), (1, "a"), (1, "")]


def test_functions_do_not_share_their_values():
    one, two = remembered(lambda run: 1), remembered(lambda run: 2)
    run = Run()
    assert (one(run), two(run), one(run)) == (1, 2, 1)


def test_what_raises_is_asked_again():
    answers = iter([ValueError("not yet"), 7])

    @remembered
    def value(run):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    run = Run()
    with pytest.raises(ValueError, match="not yet"):
        value(run)
    assert value(run) == 7


def test_nothing_outlives_its_run():
    @remembered
    def value(run):
        return Run()

    run = Run()
    kept = weakref.ref(value(run))
    del run
    gc.collect()
    assert kept() is None
