"""Are the texts the baseline's, and are they texts at all."""

import random

import pytest

from specdec.experiments.figures.texts import degeneracy, equality, num_repeated
from tests.toys.bench_records import a_request, a_run, a_step

UNITS = {"p0": 0, "p1": 1}
TIE = {"position": 3, "expected": 1, "got": 2, "margin": 0.01, "resolution": 0.01, "is_tie": True}
WIDE = TIE | {"margin": 2.0, "is_tie": False}


def of_text(prompt, tokens, **changes):
    return a_request(prompt, None, tokens=tokens, **changes)


def run_of(*requests, **changes):
    return a_run("arm", 0, requests, **changes)


@pytest.mark.parametrize(
    ("tokens", "count"),
    [
        ([], 0),
        ([1, 1, 1, 1], 0),
        ([1] * 5, 4),
        ([1, 2] * 4, 6),
        (list(range(50)), 0),
        ([1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5], 5),
    ],
)
def test_repeated_tokens(tokens, count):
    assert num_repeated(tokens) == count


def test_repetition_against_counting_by_hand():
    source = random.Random(0)
    for _ in range(30):
        tokens = [source.randrange(3) for _ in range(source.randrange(40))]
        seen, inside = set(), set()
        for start in range(len(tokens) - 3):
            gram = tuple(tokens[start : start + 4])
            inside |= set(range(start, start + 4)) if gram in seen else set()
            seen.add(gram)
        assert num_repeated(tokens) == len(inside)


def test_a_loop_is_flagged():
    loop, text = of_text("p0", [1, 2, 3] * 20), of_text("p1", range(60), finish_reason="eos")
    (repeated, tokens), found = degeneracy([(0, loop), (1, text)], 2)
    assert repeated.tolist() == [57, 0] and tokens.tolist() == [60, 60]
    assert found == {"eos_rate": 0.5, "is_flagged": True, "flagged": ["p0"]}


def test_a_text_over_at_once_is_flagged_and_a_short_one_is_not():
    ended, short = of_text("p0", [9], finish_reason="eos"), of_text("p1", [9] * 15)
    assert degeneracy([(0, ended)], 1)[1]["flagged"] == ["p0"]
    assert degeneracy([(1, short)], 2)[1] == {"eos_rate": 0.0, "is_flagged": False, "flagged": []}
    assert degeneracy([], 0)[1] == {"eos_rate": None, "is_flagged": False, "flagged": []}


def test_one_loop_in_twenty_does_not_flag_the_arm():
    requests = [(0, of_text("p0", range(60)))] * 19 + [(1, of_text("p1", [7] * 60))]
    found = degeneracy(requests, 2)[1]
    assert found["flagged"] == ["p1"] and not found["is_flagged"]


def test_equality_counts_each_text_once_by_its_worst_repeat():
    runs = [
        run_of(of_text("p0", [1], difference=None), of_text("p1", [1], difference=TIE), repeat=0),
        run_of(of_text("p0", [1], difference=None), of_text("p1", [1], difference=WIDE), repeat=1),
        run_of(of_text("p0", [1], difference=None), of_text("p1", [1], difference=TIE), repeat=2),
    ]
    found = equality(runs, UNITS)
    assert (found["num_compared"], found["num_identical"], found["num_ties"]) == (2, 1, 0)
    assert found["differences"] == [
        {"prompt": "p1", "turn": 0, "position": 3, "margin": 2.0, "resolution": 0.01, "is_tie": False}
    ]


def test_a_turn_after_a_difference_is_not_compared():
    turns = [of_text("p0", [1], turn=turn, difference=found) for turn, found in enumerate((None, TIE, WIDE))]
    found = equality([run_of(*turns)], UNITS)
    assert (found["num_compared"], found["num_identical"], found["num_ties"]) == (2, 1, 1)


def test_what_promises_no_text_is_not_compared():
    found = equality([run_of(a_request("p0", [a_step()]))], UNITS)
    assert found == {"num_compared": 0, "num_identical": 0, "num_ties": 0, "differences": []}
