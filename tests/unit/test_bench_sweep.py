"""Sweeps: which settings there are, which arms they make, what is left out and what is the same."""

import pytest

from specdec.experiments.bench.arms import planned
from specdec.experiments.bench.sweep import read_sweep, samplings_of, specs_of, sweep_of
from specdec.experiments.bench.workbench import workbench


@pytest.fixture(scope="module")
def bench():
    return workbench(sweep_of({}), None, None)


@pytest.fixture
def plan_of(bench):
    return lambda **settings: planned(sweep_of(settings), lambda target: bench)


def labels(plan):
    return [arm["label"] for arm in plan.arms]


def test_flags_and_toml_mean_the_same(tmp_path):
    (tmp_path / "s.toml").write_text(
        "temperature = [0.0, 0.8]\ntop_p = 0.9\nrepeats = 2\n"
        '[[drafter]]\nmethod = "ngram"\nprompt_lookup_max = [2, 4]\n'
        '[[drafter]]\nmethod = "draft_model"\nnum_speculative_tokens = 3\n'
    )
    sweep = sweep_of(read_sweep(tmp_path / "s.toml"))
    assert sweep.temperature == (0.0, 0.8) and sweep.top_p == (0.9,) and sweep.repeats == 2
    assert [s["prompt_lookup_max"] for s in specs_of(sweep.drafter[0], sweep)] == [2, 4] * 3
    assert [s["num_speculative_tokens"] for s in specs_of(sweep.drafter[1], sweep)] == [3]
    assert sweep_of({"temperature": ["0", "0.8"], "top_k": "none"}) == sweep_of({"temperature": [0, 0.8]})
    assert sweep_of({"drafter": ["ngram"]}) == sweep_of({"drafter": [{"method": "ngram"}]})


def test_greedy_cells_do_not_multiply_by_what_only_sampling_knows():
    assert len(samplings_of(sweep_of({"temperature": [0, 0.5], "top_p": [0.8, 0.9]}))) == 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batchsize": 1}, "expected a known setting, got 'batchsize'; did you mean 'batch_size'?"),
        ({"temperature": -1}, "a number from 0 to 100 for temperature, got -1"),
        ({"temperature": "warm"}, "got 'warm'"),
        ({"num_speculative_tokens": [0]}, "a whole number of at least 1"),
        ({"num_speculative_tokens": 2.5}, "got 2.5"),
        ({"num_speculative_tokens": True}, "got True"),
        ({"batch_size": []}, "at least one value for batch_size"),
        ({"verifier": "gredy"}, "did you mean 'greedy'?"),
        ({"dtype": "bf16"}, "expected a known dtype"),
        ({"drafter": [{"k": 3}]}, "names or tables with a 'method'"),
        ({"top_p": 0.9}, "expected a temperature above 0 with top_p"),
        ({"graphs": "yes"}, "true or false"),
        ({"prompts": 3}, "a string"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        sweep_of(settings)
    assert message in str(error.value)


@pytest.mark.parametrize("content, message", [(None, "no such file"), ("a = [1", "expected a sweep in TOML")])
def test_a_file_that_is_no_sweep_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "s.toml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sweep(tmp_path / "s.toml")


def test_without_settings_every_drafter_is_measured_at_several_lengths(plan_of):
    plan = plan_of()
    names = [arm["drafter_name"] for arm in plan.arms]
    assert {name: names.count(name) for name in names} == {
        None: 2, "ngram": 3, "assisted": 3, "prompt lookup": 3, "draft_model": 3, "block": 3, "eagle3": 3, "medusa": 2,
    }  # fmt: skip
    assert plan.notes == ["medusa k=6: it drafts 4 tokens at most, so it is measured as k=4"]
    assert plan.arms[0]["label"] == "plain" and plan.arms[0]["drafter"] is None
    assert len({arm["cell"] for arm in plan.arms}) == 1
    assert len({arm["id"] for arm in plan.arms}) == len(plan.arms)
    assert {arm["baseline"] for arm in plan.arms} == {plan.arms[0]["id"]}
    assert plan.left_out == []


def test_cells_have_a_baseline_each(plan_of):
    plan = plan_of(drafter="ngram", num_speculative_tokens=3, temperature=[0, 0.8], batch_size=[1, 2])
    assert [len(arms) for arms in plan.cells.values()] == [2, 2, 2, 2]
    assert len({arm["baseline"] for arm in plan.arms}) == 4
    assert {arm["verifier"] for arm in plan.arms} == {"greedy", "sample_and_match"}
    assert "embedded bfloat16 temperature 0.8 batch 2" in plan.cells


def test_what_cannot_be_is_left_out_with_its_reason(plan_of):
    trees = plan_of(
        drafter=["ngram", "draft_model", "replay", "assisted"], num_speculative_tokens=3, num_tree_nodes=[0, 6],
        temperature=[0, 0.8], verifier=["auto", "block", "greedy"], batch_size=[1, 2],
    )  # fmt: skip
    reasons = "\n".join(trees.left_out)
    assert "ngram k=3 nodes=6, greedy: it drafts chains, and has no num_tree_nodes" in reasons
    assert "draft_model k=3 rule=block, greedy: expected a temperature above 0 with the rule 'block', got 0" in reasons
    assert "draft_model k=3 nodes=6 rule=block, temperature 0.8: expected a drafter of chains" in reasons
    assert "ngram k=3 rule=greedy, temperature 0.8: expected do_sample=False" in reasons
    assert "replay" in reasons and "assisted k=3, greedy: transformers drafts for a batch of 1, got 2" in reasons
    kept = {(arm["label"], arm["sampling"]["temperature"], arm["batch_size"]) for arm in trees.arms}
    assert ("draft_model k=3 nodes=6", 0.8, 2) in kept and ("draft_model k=3 rule=block", 0.8, 1) in kept
    assert ("transformers assisted k=3", 0.0, 1) in kept
    with pytest.raises(ValueError, match="expected at least one drafter that can be measured, got none: replay"):
        plan_of(drafter="replay")


def test_the_same_configuration_is_measured_once(plan_of):
    plan = plan_of(drafter=["block"], num_speculative_tokens=[50, 60])
    depth = plan.arms[1]["num_speculative_tokens"]
    assert labels(plan) == ["plain", f"block k={depth}"]
    assert plan.notes[0].startswith(f"block k=50: it drafts {depth} tokens at most") and len(plan.notes) == 2
    plan = plan_of(drafter=["ngram"], num_speculative_tokens=3, verifier=["auto", "greedy"])
    assert labels(plan) == ["plain", "ngram k=3"]
    assert plan.notes == ["ngram k=3 rule=greedy, greedy: the same as ngram k=3, measured once"]
    plan = plan_of(drafter=["draft_model", "draft_model coupled"], num_speculative_tokens=3, temperature=[0, 1])
    assert labels(plan) == [
        "plain", "draft_model k=3", "plain", "draft_model k=3", "draft_model k=3 draft_sample_method=coupled",
    ]  # fmt: skip


def test_trees_by_shape(plan_of):
    plan = plan_of(
        drafter=["medusa", "draft_model tree"], num_speculative_tokens=2, speculative_token_tree="[(0,),(1,),(0,0)]"
    )
    shaped, nodes = plan.arms[1:]
    assert (shaped["num_speculative_tokens"], shaped["num_tree_nodes"]) == (2, 3)
    assert (nodes["num_tree_nodes"], nodes["drafter_name"]) == (12, "draft_model")


@pytest.mark.parametrize(
    "drafter, message",
    [
        ("ngrm", "expected a known drafter, got 'ngrm'; did you mean 'ngram'?"),
        ({"method": "ngram", "prompt_lookup_mx": 3}, "did you mean 'prompt_lookup_max'?"),
        ({"method": "eagle3", "num_tree_node": 3}, "did you mean 'num_tree_nodes'?"),
        ({"method": "assisted", "model": "x"}, "expected a known option of transformers assisted"),
        ({"method": "peagle"}, "expected a head for 'peagle', got none; pass --head FOLDER"),
        ({"method": "ngram", "verifier": ["blok"]}, "did you mean 'block'?"),
        ({"method": "medusa", "speculative_token_tree": "[(0,), (0, 0, 0)]"}, "speculative_token_tree"),
    ],
)
def test_drafters_that_are_none_are_refused(plan_of, drafter, message):
    with pytest.raises(ValueError) as error:
        plan_of(drafter=[drafter])
    assert message in str(error.value)
