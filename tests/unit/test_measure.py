"""Measuring: fair turns, counted calls, the first difference of two texts."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.experiments.contenders import Contender
from specdec.experiments.differences import Choosing, first_difference
from specdec.experiments.measure import measure, turns
from specdec.generation import generate
from specdec.noise import PhiloxNoise

PROMPT = torch.tensor([[3, 4, 5]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, eos_token_id=None, **sizes)).eval()


def generating(model, **kwargs):
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **kwargs}
    return lambda ids: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def test_every_contender_begins_equally_often_and_runs_everywhere():
    field = [Contender(name, run=None) for name in "abc"]
    order = [(contender.name, index) for contender, index in turns(field, num_prompts=3, repeats=2)]
    assert sorted(order) == sorted([(name, index) for name in "abc" for index in range(3)] * 2)
    begins = [order[start] for start in range(0, len(order), 3)]
    assert begins == [("a", 0), ("b", 1), ("c", 2), ("b", 0), ("c", 1), ("a", 2)]
    assert all(len({index for _, index in order[start : start + 3]}) == 1 for start in range(0, len(order), 3))


def test_target_calls_of_transformers_are_counted(model):
    seen = []
    field = [
        Contender("plain", generating(model)),
        Contender("itself", generating(model, assistant_model=model)),
    ]
    records = measure(model, [PROMPT], field, repeats=3, seed=0, on_run=lambda *state: seen.append(state))
    plain = records["plain"][0]
    assert (plain.num_steps, plain.num_drafted, plain.num_accepted) == (6, 0, 0)
    assert len(plain.runs) == 3 and len(plain.kept.tokens) == 6
    assert seen == [(done, 8, seen[done - 1][2]) for done in range(1, 9)]  # 2 counted, 6 timed
    assert not model._forward_hooks


def test_drafted_and_accepted_are_read_off_the_calls(model):
    """Prompt lookup on a prompt that repeats: what the calls checked is what was drafted."""
    prompt = torch.tensor([[3, 4, 5, 6, 3, 4, 5, 6, 3, 4]])
    widths = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    run = generating(model, prompt_lookup_num_tokens=3)
    emitted = run(prompt).shape[1] - prompt.shape[1]
    handle.remove()
    record = measure(model, [prompt], [Contender("lookup", run)], 1, 0, lambda *state: None)["lookup"][0]
    drafted = [widths[0] - prompt.shape[1], *(width - 1 for width in widths[1:])]
    assert record.num_steps == len(widths)
    assert record.num_drafted == sum(drafted) > 0
    assert record.num_accepted == emitted - len(widths)


def test_hook_is_removed_when_a_run_fails(model):
    def fail(ids):
        raise RuntimeError("as a run may")

    with pytest.raises(RuntimeError, match="as a run may"):
        measure(model, [PROMPT], [Contender("plain", fail)], 1, 0, lambda *state: None)
    assert not model._forward_hooks


def test_first_difference_has_the_margin_of_the_target(model):
    wanted = generating(model)(PROMPT)[0, 3:].tolist()
    other = [*wanted[:2], (wanted[2] + 1) % 24, *wanted[3:]]
    found = first_difference(model, "p", PROMPT, wanted, other)
    logits = model(torch.tensor([[*PROMPT[0].tolist(), *wanted[:2]]])).logits[0, -1].detach()
    best = logits.topk(2).values
    assert (found.prompt, found.position, found.expected, found.got) == ("p", 2, wanted[2], other[2])
    assert found.margin == pytest.approx(float(best[0] - best[1]), abs=1e-6)
    assert not found.is_tie


def test_a_text_that_stops_early_differs_at_its_end(model):
    found = first_difference(model, "p", PROMPT, [7, 8, 9], [7, 8])
    assert (found.position, found.expected, found.got) == (2, 9, None)
    assert first_difference(model, "p", PROMPT, [7, 8], [7, 8]) is None


def test_equal_logits_are_a_tie(model):
    """Two tokens with the same output row tie exactly."""
    twin = LlamaForCausalLM(model.config).eval()
    twin.load_state_dict(model.state_dict())
    best = int(twin(PROMPT).logits[0, -1].argmax())
    other = (best + 1) % 24
    with torch.no_grad():
        twin.lm_head.weight[other] = twin.lm_head.weight[best]
    assert first_difference(twin, "p", PROMPT, [best], [other]).is_tie


def test_where_noise_chooses_the_margin_is_that_of_the_race(model):
    """The two largest logits may be far apart where two other tokens tie."""
    options = {"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.3, "max_new_tokens": 6, "pad_token_id": 0}
    text = generate(model, PROMPT, seed=[11], **options)[0, 3:].tolist()
    for position in range(6):
        prefix = torch.tensor([[*PROMPT[0].tolist(), *text[:position]]])
        logits = model(prefix).logits[0, -1].detach()
        seen = prefix[0].unique()
        scores = logits.clone()
        scores[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.3, logits[seen] / 1.3)
        race = PhiloxNoise(11)._gumbels(logits[None], [prefix.shape[1]])[0] + scores / 0.5
        first, second = race.topk(2).indices.tolist()
        assert first == text[position]
        found = first_difference(model, "p", PROMPT, text, [*text[:position], second], Choosing(options, 11))
        if not {first, second} & set(seen.tolist()):  # of a penalised logit a rise counts otherwise
            assert found.margin == pytest.approx(0.5 * float(race[first] - race[second]), abs=1e-4)
        assert found.margin > 0 and found.position == position


def test_a_token_at_the_edge_of_the_nucleus_is_near(model):
    """Whether it is in is a matter of rounding, however far its logit is from the largest."""
    logits = model(PROMPT).logits[0, -1].detach()
    probs, order = logits.softmax(-1).sort(descending=True)
    options = {"do_sample": True, "max_new_tokens": 1, "pad_token_id": 0}
    narrow, wide = ({**options, "top_p": float(probs[:2].sum()) + by} for by in (-1e-6, 1e-6))  # without and with it
    pairs = (
        (seed, [generate(model, PROMPT, seed=[seed], **each)[0, 3].item() for each in (narrow, wide)])
        for seed in range(50)
    )
    seed, (without, edge) = next((seed, pair) for seed, pair in pairs if pair[0] != pair[1])
    assert edge == order[2]
    found = first_difference(model, "p", PROMPT, [without], [edge], Choosing(narrow, seed))
    assert 0 < 10 * found.margin < float(logits[order[0]] - logits[edge])
