"""What people read: tables that fit, and verdicts that follow from the figures."""

import io

import pytest
from rich.console import Console

from specdec.experiments.figures.compare_sets import compare_sets
from specdec.experiments.figures.summary import summarize
from specdec.experiments.figures.verdicts import verdicts
from specdec.experiments.figures.view import print_comparison, print_summary
from tests.toys.bench_records import a_header, a_request, a_run, a_step, a_sweep, an_arm, plain_run

TIE = {"position": 3, "expected": 1, "got": 2, "margin": 0.01, "resolution": 0.01, "is_tie": True}
PROMPTS = [f"p{index}" for index in range(8)]


def printed(show, value):
    text = io.StringIO()
    show(value, Console(file=text, width=120))
    assert max(map(len, text.getvalue().splitlines())) <= 120
    return text.getvalue()


def bench(speeds, prompts=PROMPTS, **changes):
    """A summary in which arm x is so many times as fast as the baseline on each prompt in turn."""
    arms = [an_arm("base"), *(an_arm(name) for name in speeds)]
    records = [plain_run("base", i, prompt, 8) for i, prompt in enumerate(prompts)]
    for name, factors in speeds.items():
        for i, prompt in enumerate(prompts):
            request = a_request(prompt, [a_step(), a_step(3, 4), a_step(2, 4)], difference=None, **changes)
            records.append(a_run(name, i, [request], round_seconds=8 / 3 / factors[i % len(factors)]))
    return summarize(a_header(arms, prompts), records)


def test_a_summary_fits_and_says_everything():
    text = printed(print_summary, summarize(*a_sweep(num_arms=4, num_prompts=12, num_steps=40)))
    for expected in (
        "tokens/step",
        "speed-up",
        "TPOT ms",
        "draft_model k3",
        "[low-high]",
        "same text: yes, of every arm",
    ):
        assert expected in text


def test_the_best_is_named_with_its_margin():
    lines = list(verdicts(bench({"slow": [1.2], "fast": [2.0]})))
    assert lines[0].endswith(
        "best is draft_model fast: 2.00x [2.00-2.00], 2.67 tokens per step; faster than the baseline"
    )
    assert lines[1].endswith("faster than draft_model slow, the next: 1.67x [1.67-1.67]")
    assert lines[2].endswith("same text: yes, of every arm on every prompt")


def test_ties_are_said():
    lines = list(verdicts(bench({"a": [2.0, 1.5], "b": [1.5, 1.9]})))
    assert "a tie with draft_model b: on these prompts they cannot be told apart" in lines[1]


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ([0.5], "do not speculate; the best, draft_model a, is slower than the baseline: 0.50x"),
        ([0.8, 1.3], "a tie with the baseline"),
        ([1.5], "faster than the baseline"),
    ],
)
def test_against_the_baseline(factors, expected):
    assert expected in next(verdicts(bench({"a": factors})))


def test_few_prompts_are_said():
    lines = list(verdicts(bench({"a": [2.0], "b": [1.0]}, prompts=PROMPTS[:2])))
    assert "too few prompts to say how sure" in lines[0] and "too few prompts to say whether" in lines[1]


def test_texts_that_differ_are_said():
    summary = bench({"a": [2.0]}, tokens=range(8))
    summary["arms"][1]["overall"]["text"] |= {"num_identical": 7, "num_ties": 1}
    assert "but for ties that rounding decided, for draft_model a" in list(verdicts(summary))[-1]
    summary["arms"][1]["overall"]["text"] |= {"num_ties": 0}
    assert "same text: NO for draft_model a" in list(verdicts(summary))[-1]


def test_an_unfinished_bench_is_shown():
    header, records = a_sweep()
    assert "nothing was run yet" in printed(print_summary, summarize(header, []))
    alone = [run for run in records if run["arm"] == "k1"]
    assert "no speed-up" in printed(print_summary, summarize(header, alone))


def test_arms_without_events_and_lossy_ones():
    arms = [an_arm("base"), an_arm("hf", system="transformers"), an_arm("typical", is_lossless=False)]
    records = [plain_run("base", i, p, 8) for i, p in enumerate(PROMPTS)]
    records += [a_run("hf", i, [a_request(p, None, difference=TIE)]) for i, p in enumerate(PROMPTS)]
    records += [a_run("typical", i, [a_request(p, [a_step(4, 4)])]) for i, p in enumerate(PROMPTS)]
    text = printed(print_summary, summarize(a_header(arms, PROMPTS), records))
    assert "tie (8)" in text and "draft_model typical (lossy)" in text


def test_a_comparison_marks_what_is_no_chance():
    header, records = a_sweep(num_arms=2, num_prompts=10)
    changed = [run | {"seconds": run["seconds"] * (2 if run["arm"] == "k1" else 1)} for run in records]
    lines = printed(print_comparison, compare_sets(header, records, header, changed)).splitlines()
    assert [("*" in line) for line in lines if " k1 " in line or " k2 " in line] == [True, False]
