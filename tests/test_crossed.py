"""What runs by default of crossed lists: every value, and of three lists or more every pair; the rest under slow."""

import itertools

import pytest
from helpers import crossed, some

LISTS = [("abcdefg", "xyz", (False, True), (1, 2)), ("abc", "vwxyz", (0, 1)), ("abcdefghijkl", "xyz"), ("ab", "xyz")]


def parts(cases):
    """(default, slow) of parametrize's cases, each as its values."""
    return [tuple(case.values) for case in cases if not case.marks], [c.values for c in cases if c.marks]


@pytest.mark.parametrize("lists", LISTS)
def test_nothing_is_dropped_and_nothing_runs_twice(lists):
    quick, slow = parts(crossed(*lists))
    assert sorted([*quick, *slow]) == sorted(itertools.product(*lists))
    assert len({case.id for case in crossed(*lists)}) == len(quick) + len(slow)
    assert crossed(*lists) == crossed(*lists)  # so in every process


@pytest.mark.parametrize("lists", LISTS)
def test_what_runs_by_default(lists):
    quick, _ = parts(crossed(*lists))
    longest = sorted(map(len, lists))[-2:]
    if len(lists) == 2:
        assert len(quick) == longest[-1]
        for place, values in enumerate(lists):
            counts = [sum(case[place] == value for case in quick) for value in values]
            assert min(counts) >= 1 and max(counts) - min(counts) <= 1
    else:
        for i, j in itertools.combinations(range(len(lists)), 2):
            assert {(case[i], case[j]) for case in quick} == set(itertools.product(lists[i], lists[j]))
        assert len(quick) <= 1.25 * longest[0] * longest[1]


def test_combinations_that_are_left_out():
    def refused(a, b, c):
        return (a, b) == ("a", "x")

    quick, slow = parts(crossed("abcde", "xyz", (0, 1), without=refused))
    assert len(quick) + len(slow) == 28 and not any(refused(*case) for case in [*quick, *slow])
    for i, j in itertools.combinations(range(3), 2):
        assert {(case[i], case[j]) for case in quick} == {(case[i], case[j]) for case in [*quick, *slow]}


def test_some():
    assert parts(some("abc", "b")) == ([("b",)], [("a",), ("c",)])
    with pytest.raises(AssertionError):
        some("abc", "d")
