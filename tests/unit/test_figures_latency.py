"""Times from events, and which runs they are taken from."""

import random

import pytest

from specdec.experiments.figures.figures import ArmRuns, figures
from specdec.experiments.figures.latency import PARTS
from specdec.experiments.figures.runs import by_arm, counted, pairs, timed
from tests.toys.bench_records import a_request, a_run, a_step, a_sweep, plain_run

STEPS = [a_step(), a_step(2, 4), a_step(0, 4), a_step(3, 4)]  # 1 + 3 + 1 + 4 tokens


def figures_of(runs, baseline=(), prompts=("p0", "p1", "p2", "p3")):
    return figures(ArmRuns.of(list(runs), list(baseline)), prompts)


def run_of(group, seconds=1.0, **changes):
    return a_run("arm", group, [a_request(f"p{group}", STEPS)], round_seconds=seconds, **changes)


def test_latencies_of_known_events():
    """Tokens come out at 1, 2, 3 and 4 seconds, and the call ends at 4.5."""
    found = figures_of([run_of(0, outside=0.5)])
    assert found["ttft_seconds"]["p50"] == 1
    assert found["tpot_seconds"]["mean"]["value"] == 3 / 8
    assert found["itl_seconds"] == {
        "mean": {"value": 1, "macro": 1, "low": None, "high": None},
        **dict.fromkeys(("p50", "p90", "p99"), 1),
    }
    assert found["itl_per_token_seconds"]["mean"]["value"] == pytest.approx((1 / 3 + 1 + 1 / 4) / 3)
    assert found["e2e_seconds"]["p99"] == 4
    assert found["tokens_per_second"]["value"] == 9 / 4.5


def test_parts_sum_to_the_time():
    found = figures_of([run_of(0, outside=0.5), run_of(1, seconds=0.3), run_of(2, seconds=0.7, outside=0.1)])["seconds"]
    assert sum(found[name] for name in (*PARTS, "outside")) == pytest.approx(found["total"], abs=1e-12)
    assert found["outside"] == pytest.approx(0.6) and found["draft"] == pytest.approx(0.25 * 4 * 2.0)


def test_one_token_has_no_time_between_tokens():
    found = figures_of([a_run("arm", 0, [a_request("p0", [a_step()])])])
    assert found["ttft_seconds"]["mean"]["value"] == found["e2e_seconds"]["mean"]["value"] == 1
    assert found["tpot_seconds"] is found["itl_seconds"] is found["itl_per_token_seconds"] is None


def test_runs_without_events_have_the_time_of_the_call():
    run = a_run("arm", 0, [a_request("p0", None)], round_seconds=0.25)
    found = figures_of([run], [plain_run("base", 0, "p0", 4)])
    assert found["e2e_seconds"]["mean"]["value"] == 2 and found["ttft_seconds"] is found["tpot_seconds"] is None
    assert found["tokens_per_second"]["value"] == 4 and found["speedup"]["ratio"] == 4
    assert found["speedup_tpot"] is None
    assert found["seconds"] == {**dict.fromkeys((*PARTS, "outside")), "total": 2.0}


def test_every_turn_has_its_own_call():
    turns = [a_request("p0", STEPS), a_request("p0", [a_step(), a_step()], turn=1)]
    found = figures_of([a_run("arm", 0, turns)])
    assert found["num_requests"] == 2 and found["num_prompts"] == 1
    assert found["e2e_seconds"]["mean"]["value"] == (4 + 2) / 2


def test_speedup_is_that_of_pairs_of_one_process():
    """The other process is twice as slow for both: its pairs say the same, and are not mixed with the first's."""
    base = [plain_run("base", group, f"p{group}", 9, process=f"{group % 2}") for group in range(4)]
    own = [run_of(group, process=f"{group % 2}") for group in range(4)]
    for run in (*base[1::2], *own[1::2]):
        run["seconds"] *= 2
    found = figures_of(own, base)
    assert found["speedup"] == pytest.approx(dict.fromkeys(("ratio", "low", "high", "macro"), 9 / 4))
    assert found["speedup_tpot"]["ratio"] == pytest.approx((8 / 8) / (3 / 8))
    stray = [run | {"process": "other"} for run in base]
    assert figures_of(own, stray)["speedup"] is None
    assert figures_of(own, base[:3])["speedup"]["ratio"] == 9 / 4


def test_median_pair():
    """Of three repeats the pair with the middle speed-up counts, not the middle times of each."""
    base = [plain_run("base", 0, "p0", 9, repeat=repeat, round_seconds=s) for repeat, s in enumerate((1.0, 2.0, 4.0))]
    own = [run_of(0, repeat=repeat, seconds=s) for repeat, s in enumerate((2.0, 1.0, 16.0))]
    kept = pairs(own, base)[0]
    assert [run["repeat"] for run in kept] == [0, 0]
    assert timed(own)[0]["repeat"] == 0


def test_first_of_a_key_counts_and_baselines_may_run_once_per_process():
    base = [plain_run("base", 0, "p0", 9, process=name) for name in "ab"]
    own = [run_of(0, process=name) for name in "ab"]
    arms = by_arm([*base, *own, *base], frozenset({"base"}))
    assert len(arms["base"]) == 2 and arms["arm"] == own[:1]


def test_repeats_of_one_text_count_once():
    same = [run_of(0, repeat=repeat) for repeat in range(3)]
    assert counted(same) == same[:1] and figures_of(same)["num_tokens"] == 9 and figures_of(same)["num_runs"] == 3
    other = a_run("arm", 0, [a_request("p0", STEPS, tokens=range(1, 10))], repeat=3)
    found = figures_of([*same, other])
    assert found["num_tokens"] == 36 and found["num_requests"] == 1


def test_a_batch_is_one_draw():
    """Four prompts in two batches: no interval of what depends on wall time, one of what does not."""
    runs = [a_run("arm", g, [a_request(f"p{2 * g + i}", STEPS) for i in range(2)]) for g in range(2)]
    found = figures_of(runs)
    assert found["tokens_per_second"]["value"] == 18 / 4 and found["tokens_per_second"]["low"] is None
    assert found["tokens_per_step"]["low"] is not None
    part = figures_of(runs, prompts=("p0", "p2"))
    assert part["tokens_per_second"] is part["seconds"]["total"] is None
    assert part["ttft_seconds"]["mean"]["value"] == 1 and part["num_tokens"] == 18


def test_memory_is_the_largest():
    found = figures_of([run_of(0), run_of(2), run_of(1)])["memory"]
    assert found == {"target_kv_bytes": 102, "drafter_kv_bytes": 10, "device_peak_bytes": None}
    assert figures_of([run_of(0, memory=None)])["memory"]["target_kv_bytes"] is None


def test_speedup_is_the_ratio_of_throughputs():
    """With one repeat in one process the paired ratio is that of the tables."""
    header, records = a_sweep(num_arms=1, seed=random.Random(3).randrange(100))
    arms = by_arm(records, frozenset({"base"}))
    prompts = [prompt["id"] for prompt in header["prompts"]]
    own, base = figures_of(arms["k1"], arms["base"], prompts), figures_of(arms["base"], (), prompts)
    ratio = own["tokens_per_second"]["value"] / base["tokens_per_second"]["value"]
    assert own["speedup"]["ratio"] == pytest.approx(ratio)
    assert own["speedup"]["low"] < ratio < own["speedup"]["high"]
