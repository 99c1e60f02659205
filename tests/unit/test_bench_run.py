"""One run of an arm: turns, batches, what is compared; and what warms an arm up."""

import json

import pytest
import torch

from specdec.experiments.bench.arms import planned
from specdec.experiments.bench.run import Member, Runner, with_differences
from specdec.experiments.bench.session import warmed, work_of
from specdec.experiments.bench.sweep import sweep_of
from specdec.experiments.bench.workbench import workbench


class Talk:
    """A prompt of several turns."""

    system = None

    def __init__(self, name, *turns):
        self.id, self.category, self.turns = name, "talk", turns


PROMPTS = [
    Talk("one", "Once upon a time"),
    Talk("two", "def f(x):", "\ndef g(x):"),
    Talk("more", "The dog", " Then", " So"),
]


@pytest.fixture(scope="module")
def bench():
    return workbench(sweep_of({"dtype": "float32"}), None, "float32")


@pytest.fixture
def plan_of(bench):
    return lambda **rest: planned(sweep_of({"dtype": "float32", "max_new_tokens": 6, **rest}), lambda target: bench)


def members(*prompts):
    return [Member(prompt, PROMPTS.index(prompt)) for prompt in prompts]


def test_turns_are_prompted_with_the_answers_before_them(bench, plan_of):
    arm = plan_of(drafter="ngram", num_speculative_tokens=3).arms[1]
    finished = Runner(bench).run(arm, members(PROMPTS[2]))
    requests = finished.record["requests"]
    assert [each["turn"] for each in requests] == [0, 1, 2] and len(finished.record["calls"]) == 3
    for turn, each in enumerate(requests):
        ids = finished.inputs["more", turn][0].tolist()
        assert len(ids) == each["num_prompt_tokens"]
        before = requests[turn - 1]
        if turn:
            said = [*finished.inputs["more", turn - 1][0].tolist(), *before["tokens"]]
            assert ids[: len(said)] == said
        alone = bench.models.target.generate(
            finished.inputs["more", turn], attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=6, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        assert alone[0, len(ids) :].tolist() == each["tokens"]


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_batch_gives_each_prompt_the_text_it_has_alone(bench, plan_of, temperature):
    """Conversations of different lengths end one after the other."""
    runner = Runner(bench)
    alone, together = (
        plan_of(drafter="medusa", num_speculative_tokens=3, batch_size=size, temperature=temperature).arms[1]
        for size in (1, 3)
    )
    own = [request for each in members(*PROMPTS) for request in runner.run(alone, [each]).record["requests"]]
    found = runner.run(together, members(*PROMPTS)).record
    texts = {(each["prompt"], each["turn"]): each["tokens"] for each in own}
    assert {(each["prompt"], each["turn"]): each["tokens"] for each in found["requests"]} == texts
    assert [call["rounds"]["num_rows"][0] for call in found["calls"]] == [
        sum(each["num_prompt_tokens"] for each in found["requests"] if each["turn"] == turn) for turn in range(3)
    ]
    assert len(texts) == 6 and json.loads(json.dumps(found)) == found


def test_turns_whose_prompts_have_parted_are_not_compared(bench, plan_of):
    plan = plan_of(drafter="ngram", num_speculative_tokens=3)
    runner = Runner(bench)
    baseline, run = (runner.run(arm, members(PROMPTS[1])) for arm in plan.arms)
    wrong = runner.run({**plan.arms[1], "sampling": {**plan.arms[1]["sampling"], "repetition_penalty": 9.0}},
                       members(PROMPTS[1]))  # fmt: skip
    assert [each["difference"] for each in with_differences(bench, plan.arms[1], run, baseline)["requests"]] == [
        None
    ] * 2
    first, second = with_differences(bench, plan.arms[1], wrong, baseline)["requests"]
    assert set(first["difference"]) == {"position", "expected", "got", "margin", "resolution", "is_tie"}
    assert not first["difference"]["is_tie"] and "difference" not in second
    assert all(
        "difference" not in each for each in with_differences(bench, plan.arms[0], baseline, baseline)["requests"]
    )


def test_memory_is_that_of_the_pages_in_use(bench, plan_of):
    plan = plan_of(drafter=["draft_model", "medusa", "transformers"], num_speculative_tokens=2)
    runner = Runner(bench)
    memory = {arm["label"]: runner.run(arm, members(PROMPTS[0])).record["memory"] for arm in plan.arms}
    config = bench.models.target.config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert memory["plain"] == {"target_kv_bytes": 16 * row, "drafter_kv_bytes": 0, "device_peak_bytes": None}
    assert memory["draft_model k=2"]["drafter_kv_bytes"] > 0 and memory["medusa k=2"]["drafter_kv_bytes"] == 0
    assert memory["transformers"]["target_kv_bytes"] is None


def test_a_prompt_that_could_outgrow_the_context_is_refused(bench):
    runner = Runner(bench)
    context = bench.target.max_positions
    runner.require_room(members(PROMPTS[2]), 8)
    with pytest.raises(ValueError, match="for 'more'; lower --max-new-tokens"):
        runner.require_room(members(PROMPTS[2]), context // 2)


def test_a_warm_up_runs_every_arm(bench, plan_of):
    plan = plan_of(drafter="ngram", num_speculative_tokens=[2, 3])
    told = []
    seconds = warmed(Runner(bench), work_of(plan, PROMPTS), lambda *state: told.append(state))
    assert set(seconds) == {arm["id"] for arm in plan.arms} and all(value > 0 for value in seconds.values())
    assert [state[:2] for state in told] == [(1, 3), (2, 3), (3, 3)]
