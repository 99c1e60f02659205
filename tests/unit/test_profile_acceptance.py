"""Acceptance for plans: traces that say what shorter drafts would have done, and result files."""

import json

import pytest

from specdec.draft_models.ngram import NGram
from specdec.draft_models.replay import Replay
from specdec.experiments.profile.acceptance import as_rows, measured, replayed, traced
from specdec.experiments.profile.acceptance_files import read_acceptance, read_result
from specdec.experiments.profile.cost import Yield, expected_tokens
from specdec.experiments.profile.drafters import Setting
from specdec.experiments.profile.running import decoding_laps, laps_of
from specdec.target import PagedModel
from tests.toys.models import tiny_model

PROMPTS = [[5, 6, 7, 5, 6], [9, 3], [4, 4, 4, 4, 4, 4, 4]]
LONGEST, NUM_TOKENS = 5, 24


@pytest.fixture(scope="module")
def target():
    return PagedModel(tiny_model("llama"))


def texts_of(target):
    """What plain decoding says."""
    found = [[] for _ in PROMPTS]
    for lap in laps_of(target, PROMPTS, NUM_TOKENS + LONGEST + 9):
        for step in lap.event.steps:
            found[step.request_id].extend(step.tokens)
    return found


def live(target, prompt, drafter):
    """(drafted, accepted) of the rounds behind one prompt."""
    steps = [lap.event.steps[0] for lap in decoding_laps(laps_of(target, [prompt], 40, drafter), 1)]
    return [(step.num_drafted, step.num_accepted) for step in steps]


@pytest.mark.parametrize("length", [1, 2, LONGEST])
@pytest.mark.parametrize("name", ["replay", "ngram"])
def test_a_trace_of_the_longest_chain_says_what_each_length_does(target, name, length):
    texts = texts_of(target)

    def drafter(count, numbers):
        records = {place: texts[number] for place, number in enumerate(numbers)}
        return NGram(count, prompt_lookup_min=1) if name == "ngram" else Replay(records, 0.7, count)

    for number, prompt in enumerate(PROMPTS):
        (trace,) = traced(target, [prompt], NUM_TOKENS, drafter(LONGEST, [number]))
        assert len(trace) == NUM_TOKENS
        rounds = replayed(trace, length)
        assert rounds == live(target, prompt, drafter(length, [number]))[: len(rounds)]
        assert sum(accepted + 1 for _, accepted in rounds) >= NUM_TOKENS


def test_measured_yields_are_those_of_the_rounds(target):
    drafters = {Setting("ngram", count): NGram(count, prompt_lookup_min=1) for count in (2, LONGEST)}
    seen = []
    found = measured(target, drafters, PROMPTS, NUM_TOKENS, lambda *args: seen.append(args))
    assert set(found.yields) == {Setting("ngram", count) for count in range(1, LONGEST + 1)}
    assert len(seen) == 1 and found.source == "measured here: 3 prompts, 24 tokens each, greedy"
    steps = [
        step
        for prompt in PROMPTS
        for step in replayed(traced(target, [prompt], 24, drafters[Setting("ngram", 5)])[0], 2)
    ]
    got = found.of(Setting("ngram", 2))
    assert got.tokens_per_step == pytest.approx(sum(1 + accepted for _, accepted in steps) / len(steps))
    assert got.drafted_share == pytest.approx(sum(depth > 0 for depth, _ in steps) / len(steps))
    assert got.low <= got.tokens_per_step <= got.high
    assert found.of(Setting("ngram", LONGEST + 1)) is None
    rows = as_rows(found, [Setting("ngram", 2), Setting("block", 2)])
    assert [(row["drafter"], row["num_speculative_tokens"]) for row in rows] == [("ngram", 2)]


def est(value, low=None, high=None):
    return {"value": value, "macro": value, "low": low, "high": high}


def arm(name, length, tokens, cell="greedy", nodes=None, system="specdec"):
    """Of 4 requests: 4 steps over prompts and 40 more, 10 of them without a draft."""
    overall = {
        "num_requests": 4,
        "num_tokens": tokens,
        "num_steps": 44,
        "num_steps_without_draft": 14,
        "tokens_per_step": est(tokens / 44, 0.9 * tokens / 44, 1.1 * tokens / 44),
        "conditional_acceptance_at_pos": [est(0.5), est(0.4), est(None)][:length],
    }
    setting = {"drafter_name": name, "num_speculative_tokens": length, "num_tree_nodes": nodes}
    return {**setting, "system": system, "cell": cell, "overall": overall}


def test_a_summary_gives_yields_behind_the_prompts(tmp_path):
    arms = [
        arm(None, None, 44),
        arm("assisted", 3, 99, system="transformers"),
        arm("eagle3", 2, 84),
        arm("eagle3 tree", 5, 104, nodes=12),
        arm("eagle3", 3, 94),
        arm("eagle3", 3, 64, cell="hot"),
    ]
    value = {"kind": "bench-summary", "version": 1, "arms": arms}
    (tmp_path / "summary.json").write_text(json.dumps(value))
    for path in (tmp_path, tmp_path / "summary.json"):
        found = read_acceptance(path)
        assert set(found.yields) == {Setting("eagle3", 2), Setting("eagle3", 3), Setting("eagle3", 5, 12)}
        assert found.source == f"{path}, greedy, the first of 2 cells"
    got = found.of(Setting("eagle3", 2))
    assert (got.tokens_per_step, got.drafted_share) == (2.0, 0.75)
    assert (got.low, got.high) == (pytest.approx(1.8), pytest.approx(2.2))
    assert found.of(Setting("eagle3", 5, 12)).tokens_per_step == 2.5
    # Lengths between and beyond follow the curve of the longest chain.
    assert found.of(Setting("eagle3", 1)) == Yield(1 + 0.75 * 0.5, 0.75)
    assert found.of(Setting("eagle3", 4)).tokens_per_step == 1 + 0.75 * (expected_tokens([0.5, 0.4], 4) - 1)


def replay_row(label, length, tokens, nodes_per_step, **columns):
    """Of 4 texts: 4 steps over prompts and 40 more."""
    steps = {"num_texts": 4, "num_steps": 44, "num_tokens": tokens, "tokens_per_step": tokens / 44}
    row = {"label": label, "drafter": "dflash", "num_speculative_tokens": length, **steps, "num_tree_nodes": None}
    return {**row, "nodes_per_step": nodes_per_step, "low": None, "high": None, **columns}


def test_a_replay_gives_its_rows(tmp_path):
    rows = [
        replay_row("ngram k=3", 3, 94, 3.0, is_exact=False),
        replay_row("ngram k=3", 3, 64, 30 / 44 * 3, low=0.9 * 64 / 44, high=64 / 44, is_exact=True),
        replay_row("ngram k=3", 3, 99, 1.0, is_exact=True, budget=4),
        replay_row("block k=7, tree of 9", 7, 124, 9 * 40 / 44, num_tree_nodes=9),
        replay_row("plain", 0, 44, 0.0),
    ]
    (tmp_path / "r.json").write_text(json.dumps({"kind": "replay", "version": 1, "rows": rows}))
    found = read_acceptance(tmp_path / "r.json").yields
    assert set(found) == {Setting("ngram", 3), Setting("block", 7, 9)}
    got = found[Setting("ngram", 3)]
    assert (got.tokens_per_step, got.drafted_share, got.high) == pytest.approx((1.5, 0.75, 1.5))
    assert got.low == pytest.approx(1.35)
    assert found[Setting("block", 7, 9)] == Yield(3.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "No such file"),
        ("{", "got no JSON"),
        ("[1]", "got 'list' of version None"),
        ('{"kind": "profile", "version": 1}', "got 'profile' of version 1"),
        ('{"kind": "replay", "version": 2, "rows": []}', "of version 2"),
        ('{"kind": "replay", "version": 1, "rows": []}', "expected drafters with drafts"),
        ('{"kind": "bench-summary", "version": 1, "arms": []}', "expected drafters with drafts"),
        ('{"kind": "replay", "version": 1}', "KeyError 'rows'"),
        ('{"kind": "bench-summary", "version": 1, "arms": [{"system": "specdec", "drafter_name": "a", '
         '"num_speculative_tokens": 2}]}', "KeyError 'overall'"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "file.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="^expected ") as raised:
        read_acceptance(path)
    assert message in str(raised.value)


def test_a_profile_is_read_as_one(tmp_path):
    (tmp_path / "p.json").write_text('{"kind": "profile", "version": 1}')
    assert read_result(tmp_path / "p.json", "profile")["kind"] == "profile"
