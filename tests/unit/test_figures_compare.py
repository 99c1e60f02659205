"""Two result sets: what is the same arm, what is a change, and what is chance."""

import json
import random

import numpy as np
import pytest

from specdec.experiments.figures.compare_sets import compare_sets
from specdec.experiments.statistics import holm, swap_p_value
from tests.toys.bench_records import a_sweep, an_arm

FIGURES = ("tokens_per_step", "draft_acceptance_rate", "tokens_per_second", "speedup")


def row_of(result, arm):
    return next(row for row in result["arms"] if row["arm_a"] == arm)


def faster(records, arm, factor):
    return [run | {"seconds": run["seconds"] / factor} if run["arm"] == arm else run for run in records]


def test_a_set_equals_itself():
    header, records = a_sweep()
    result = compare_sets(header, records, header, records)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["is_comparable"] and result["are_times_comparable"] and result["notes"] == []
    for name in FIGURES:
        found = row_of(result, "k2")["figures"][name]
        assert found["ratio"] == found["low"] == found["high"] == found["p_value"] == 1 and found["a"] == found["b"]
    assert row_of(result, "base")["figures"]["draft_acceptance_rate"] is None


def test_a_change_of_one_arm_is_found_and_of_the_others_not():
    header, records = a_sweep(num_arms=3, num_prompts=10)
    result = compare_sets(header, records, header, faster(records, "k2", 1.25))
    for arm in ("base", "k1", "k2", "k3"):
        found = row_of(result, arm)["figures"]["tokens_per_second"]
        assert found["ratio"] == pytest.approx(1.25 if arm == "k2" else 1)
        assert (found["p_holm"] < 0.01) == (arm == "k2")
    found = row_of(result, "k2")["figures"]["tokens_per_second"]
    assert found["p_value"] == 2 / 2**10 and found["p_holm"] == pytest.approx(4 * found["p_value"])
    assert row_of(result, "k2")["figures"]["speedup"]["low"] == pytest.approx(1.25)


def test_a_faster_machine_changes_times_and_no_speedup():
    header, records = a_sweep(num_prompts=8)
    other = header | {"environment": header["environment"] | {"cpu": "faster"}}
    result = compare_sets(header, records, other, [run | {"seconds": run["seconds"] / 2} for run in records])
    figures = row_of(result, "k1")["figures"]
    assert figures["tokens_per_second"]["ratio"] == pytest.approx(2) and figures["speedup"]["ratio"] == pytest.approx(1)
    assert not result["are_times_comparable"] and "other cpu" in result["notes"][0]
    assert result["environment_differs"] == {"cpu": ["toy", "faster"]}


def test_an_arm_of_another_dtype_is_matched_by_label():
    header, records = a_sweep(num_arms=1)
    changed = header | {"arms": [an_arm("base2", baseline="base2", dtype="float16"), header["arms"][1]]}
    moved = [run | {"arm": "base2"} if run["arm"] == "base" else run for run in records]
    result = compare_sets(header, records, changed, moved)
    assert row_of(result, "base")["difference"] == {"dtype": ["float32", "float16"]}
    changed["arms"][0] |= {"seed": 1}
    result = compare_sets(header, records, changed, moved)
    assert (result["only_a"], result["only_b"]) == (["plain"], ["plain"])


def test_only_common_prompts_count():
    header, records = a_sweep(num_prompts=6)
    part = header | {"prompts": [*header["prompts"][:4], header["prompts"][4] | {"id": "new"}]}
    kept = [run for run in records if run["group"] < 4]
    kept[-1]["requests"][0] |= {"num_prompt_tokens": 99}
    result = compare_sets(header, [run for run in a_sweep(num_prompts=6)[1]], part, kept)
    assert result["num_prompts"] == 3 and row_of(result, "k1")["num_prompts"] == 3
    assert len(result["notes"]) == 2


def test_nothing_in_common():
    header, records = a_sweep()
    other = header | {"prompts": [], "arms": [an_arm("x", label="other")]}
    result = compare_sets(header, records, other, [])
    assert not result["is_comparable"] and len([note for note in result["notes"] if "not comparable" in note]) == 2
    assert result["arms"] == [] and result["only_b"] == ["other"]
    assert not compare_sets(header, records, header | {"prompts": []}, [])["is_comparable"]


def test_p_values_of_chance_are_uniform():
    """No difference but noise: of 200 seeded tests, about 5 % fall below 5 %, exactly or by random exchanges."""
    source = np.random.default_rng(2)
    for num_prompts in (8, 30):
        small = 0
        for _ in range(200):
            first, second = (source.uniform(1, 3, (num_prompts, 2)) for _ in range(2))
            small += swap_p_value(first, second, lambda sums: sums[..., 0] / sums[..., 1]) < 0.05
        assert 2 <= small <= 20


def test_p_value_of_few_prompts_is_counted():
    """Three prompts have eight exchanges: a change of all of them is as extreme as its mirror image only."""
    first = np.array([[1.0, 1], [2, 2.1], [3, 2.9]])
    assert swap_p_value(first, first * [2, 1], lambda sums: sums[..., 0] / sums[..., 1]) == 2 / 8
    assert swap_p_value(first[:0], first[:0], lambda sums: sums[..., 0]) is None


def test_holm_is_monotone_and_no_smaller_than_the_p_values():
    source = random.Random(0)
    for _ in range(50):
        p_values = [source.random() ** 3 for _ in range(source.randrange(1, 8))]
        adjusted = holm(p_values)
        assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
        order = sorted(range(len(p_values)), key=p_values.__getitem__)
        assert [adjusted[i] for i in order] == sorted(adjusted)
