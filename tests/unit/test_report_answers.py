"""What a report says in words: ties where measurements do not tell arms apart, doubts, and what may not compete."""

import pytest

from specdec.experiments.report.answers import answers, best_lengths, findings
from specdec.experiments.report.arms import read_arms, series_numbers


def row(name, length, interval, **changes):
    low, ratio, high = interval
    text = {"num_compared": 20, "num_identical": 20, "num_ties": 0, "differences": []}
    return {
        "id": f"{name}{length}", "label": f"{name} k={length}", "cell": "greedy", "baseline": "plain",
        "drafter_name": name, "num_speculative_tokens": length, "is_lossless": True, "level": "lossy",
        "overall": {
            "num_prompts": 20, "speedup": {"ratio": ratio, "low": low, "high": high},
            "text": text, "degeneracy": {"is_flagged": False},
        },
        **changes,
    }  # fmt: skip


PLAIN = {"id": "plain", "label": "plain", "cell": "greedy", "baseline": "plain", "overall": {"text": None}}


def said(*rows, cells=()):
    """The answers by their questions' first two words."""
    (found,) = answers(read_arms({"arms": [PLAIN, *rows], "cells": cells}))
    return {" ".join(question.split()[:2]): answer for question, answer in found.pairs}


def test_a_clear_winner_is_named_with_its_interval():
    found = said(row("ngram", 2, (1.1, 1.2, 1.3)), row("eagle3", 4, (1.8, 2.0, 2.2)))
    assert found["Which drafter?"] == "eagle3." and found["Which length?"] == "4 drafted tokens."
    assert "2.00 times" in found["By how"] and "1.80–2.20" in found["By how"]
    assert "this is a gain, measured on 20 prompts" in found["How sure?"] and "every other arm" in found["How sure?"]
    assert found["Is the"] == "Yes: all 40 texts are token for token those of plain decoding."


def test_overlapping_intervals_are_a_tie_of_drafters_and_of_lengths():
    found = said(
        row("ngram", 2, (1.5, 1.9, 2.1)), row("eagle3", 4, (1.8, 2.0, 2.2)), row("eagle3", 7, (1.7, 1.95, 2.2))
    )
    assert found["Which drafter?"] == "A tie: eagle3 is ahead, but the measurements do not tell it from ngram."
    assert found["Which length?"].startswith("A tie: for eagle3, 4 drafted tokens are ahead")
    assert "ngram k=2 (1.90, 1.50–2.10)" in found["How sure?"]


@pytest.mark.parametrize(
    "low, p_value, words",
    [
        (1.03, 0.001, "faster than every other arm (paired by prompts, p at most 0.001"),
        (1.03, 0.2, "but with p up to 0.2 over all arms (Holm): more prompts would tell more"),
        (0.99, 0.3, "Its rank is not sure: ngram k=2"),
    ],
)
def test_pairs_of_prompts_decide_where_they_were_compared(low, p_value, words):
    """Both intervals overlap; the paired ratio may tell the arms apart all the same."""
    over = {"ratio": 1.05, "low": low, "high": 1.07, "p_value": p_value / 2, "p_holm": p_value}
    cell = {"cell": "greedy", "arms": [{"arm": "eagle34", "over": None}, {"arm": "ngram2", "over": over}]}
    found = said(row("ngram", 2, (1.5, 1.9, 2.1)), row("eagle3", 4, (1.8, 2.0, 2.2)), cells=[cell])
    assert found["Which drafter?"].startswith("A tie") == (low < 1)
    assert words in found["How sure?"]


@pytest.mark.parametrize(
    "interval, words",
    [
        ((0.7, 0.8, 0.9), "no drafter here is faster"),
        ((0.9, 1.1, 1.3), "a gain over plain decoding is not shown"),
        ((None, 1.5, None), "Not known: no interval"),
    ],
)
def test_doubts_are_told(interval, words):
    assert words in said(row("ngram", 2, interval))["How sure?"]


def test_lossy_and_degenerate_arms_do_not_compete_and_are_warned_of():
    lossy = row("fast", 3, (4.0, 5.0, 6.0), is_lossless=False)
    rubbish = row("stuck", 3, (4.0, 5.0, 6.0))
    rubbish["overall"] |= {"degeneracy": {"is_flagged": True, "repetition": {"value": 0.75}}}
    rows = [PLAIN, lossy, rubbish, row("ngram", 2, (1.1, 1.2, 1.3))]
    assert said(*rows[1:])["Which drafter?"] == "ngram."
    warned = list(findings(read_arms({"arms": rows})))
    assert len(warned) == 2 and "lossy" in warned[0] and "75 % repeats itself" in warned[1]


def test_nothing_measured_is_said():
    assert "No arm has a speed-up" in said()["Which drafter?"] and said()["Is the"] == "No texts were compared."


@pytest.mark.parametrize("num_ties, begin", [(2, "But for ties, yes: 18 of 20"), (1, "No: 18 of 20")])
def test_differing_texts_are_ties_or_not(num_ties, begin):
    differing = row("ngram", 2, (1.1, 1.2, 1.3))
    differing["overall"]["text"] |= {"num_identical": 18, "num_ties": num_ties}
    assert said(differing)["Is the"].startswith(begin)


def test_lines_are_told_apart_by_what_else_differs():
    rows = [
        row("medusa", 3, (1.0, 1.1, 1.2)), row("medusa", 3, (1.0, 1.1, 1.2), id="t", num_tree_nodes=12),
        row("medusa", 3, (1.0, 1.1, 1.2), id="a", system="transformers"),
        row("suffix", None, (1.0, 1.1, 1.2), label="suffix tree"),
    ]  # fmt: skip
    arms = read_arms({"arms": [PLAIN, *rows]})
    assert list(series_numbers(arms)) == ["medusa", "medusa tree of 12", "transformers medusa", "suffix tree"]


def test_the_best_length_of_each_drafter_with_its_ties():
    rows = [row("a", 2, (1.0, 1.1, 1.2)), row("a", 4, (1.15, 1.25, 1.3)), row("a", 7, (0.5, 0.6, 0.7))]
    ((name, best, ties),) = best_lengths(read_arms({"arms": [PLAIN, *rows]}))
    assert (name, best.length, ties) == ("a", 4, "2")
