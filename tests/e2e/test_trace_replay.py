"""Replayed rounds are the live ones: one trace, and a live run of the embedded models for every smaller setting.

In float64, so that the width of a forward pass decides nothing.
"""

import pytest
import torch

import specdec
from specdec.experiments.trace.cuts import Setting
from specdec.experiments.trace.replay import Costs, replayed, totals
from specdec.experiments.trace.schema import read_trace, write_trace
from specdec.experiments.trace.tracing import Tracing, trace_arm
from specdec.methods import load_drafter, paged
from specdec.noise import request_seed
from specdec.zoo import embedded_heads

PROMPTS = ("def f(x):\n    return", "Once upon a time, there was a girl. The girl")
NEW_TOKENS = 20
GREEDY, SAMPLED = {"do_sample": False}, {"do_sample": True, "temperature": 0.7, "top_k": 20}
TREE = {"num_tree_nodes": 12, "tree_width": 3}


@pytest.fixture(scope="module")
def embedded():
    target, draft, tokenizer = specdec.load_embedded(torch.float64)
    return paged(target), draft, [tokenizer(text, return_tensors="pt")["input_ids"] for text in PROMPTS]


def drafter_of(name, target, draft, **options):
    """A drafter with these options."""
    if name in ("medusa", "eagle3", "block"):
        return load_drafter(embedded_heads()[name], target, **options)
    given = {"model": draft} if name == "draft_model" else {}
    return {"method": name, **given, **options}


def live(target, drafter, prompt, seed, **options):
    """The steps of a run."""
    output = specdec.generate(
        target, prompt, attention_mask=torch.ones_like(prompt), drafter=drafter, seed=[seed], max_new_tokens=NEW_TOKENS,
        return_dict_in_generate=True, **options,
    )  # fmt: skip
    return [step for each in output.speculation.rounds for step in each.steps]


def traced(embedded, name, sampling, tmp_path, **options):
    target, draft, prompts = embedded
    tracing = Tracing({"max_new_tokens": NEW_TOKENS, **sampling}, seeds=5)
    rule = "sample_and_match" if sampling["do_sample"] else "greedy"
    table = trace_arm(target, drafter_of(name, target, draft, **options), rule, tracing, prompts)
    write_trace(tmp_path / "trace.parquet", table, {})
    return read_trace(tmp_path / "trace.parquet")


def assert_as_live(embedded, trace, setting, drafter, sampling, is_same=True):
    target, _, prompts = embedded
    rule = trace.header["verifier"]
    for index, (text, prompt) in enumerate(zip(trace.texts, prompts, strict=True)):
        found = replayed(trace, text, setting, rule)
        sums = totals(found, Costs(), drafter if isinstance(drafter, str) else "")
        steps = live(target, drafter, prompt, request_seed(5, index), **sampling)
        assert text.tokens == tuple(token for step in steps for token in step.tokens)
        assert found.accepted == [step.num_accepted for step in steps]
        assert sums.num_steps == len(steps)
        assert sums.num_drafted == sum(step.num_drafted for step in steps)
        assert sums.num_nodes == sum(step.num_nodes for step in steps)
        assert sums.is_same is is_same


def test_trees_cut_by_depth_say_whether_they_are_the_live_ones(embedded, tmp_path):
    trace = traced(embedded, "eagle3", GREEDY, tmp_path, num_speculative_tokens=5, **TREE)
    for depth, size in ((2, 3), (3, 4)):  # of twelve nodes so many are always so shallow
        options = {"num_speculative_tokens": depth, "num_tree_nodes": size, "tree_width": 3}
        drafter = drafter_of("eagle3", *embedded[:2], **options)
        assert_as_live(embedded, trace, Setting(depth, size), drafter, GREEDY)
    sums = [totals(replayed(trace, text, Setting(1), "greedy"), Costs(), "eagle3") for text in trace.texts]
    assert not any(each.is_same for each in sums), "a tree of depth 1 would be wider"


def test_trees_of_fixed_shape_at_every_depth(embedded, tmp_path):
    shape = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 0, 0)]
    trace = traced(embedded, "draft_model", SAMPLED, tmp_path, speculative_token_tree=shape)
    for depth in (1, 2, 3):
        cut = [path for path in shape if len(path) <= depth]
        drafter = drafter_of("draft_model", *embedded[:2], speculative_token_tree=cut)
        assert_as_live(embedded, trace, Setting(depth), drafter, SAMPLED)


@pytest.mark.parametrize("method", ["greedy", "coupled"])
def test_thresholds_of_a_chain(embedded, tmp_path, method):
    options = {"num_speculative_tokens": 5, "draft_sample_method": method}
    trace = traced(embedded, "draft_model", SAMPLED, tmp_path, **options)
    for threshold in (0.2, 0.5, 0.9):
        drafter = drafter_of("draft_model", *embedded[:2], confidence_threshold=threshold, **options)
        assert_as_live(embedded, trace, Setting(confidence_threshold=threshold), drafter, SAMPLED)


def test_a_block_cut_short_is_called_an_approximation(embedded, tmp_path):
    trace = traced(embedded, "block", GREEDY, tmp_path, num_speculative_tokens=5)
    drafter = drafter_of("block", *embedded[:2], num_speculative_tokens=5)
    assert_as_live(embedded, trace, Setting(), drafter, GREEDY)
    sums = totals(replayed(trace, trace.texts[0], Setting(3), "greedy"), Costs(), "dflash")
    assert not sums.is_same


def test_a_text_that_ends_by_itself(embedded, tmp_path):
    """Behind the last token nothing is accepted; the options say where it ends, as live."""
    trace = traced(embedded, "ngram", GREEDY, tmp_path, num_speculative_tokens=4)
    eos = trace.texts[0].tokens[11]
    ending = {"do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    trace = traced(embedded, "ngram", ending, tmp_path, num_speculative_tokens=4)
    assert len(trace.texts[0].tokens) <= 12
    drafter = drafter_of("ngram", *embedded[:2], num_speculative_tokens=4)
    assert_as_live(embedded, trace, Setting(), drafter, ending)


def test_a_given_text_must_end_where_the_options_end_it(embedded):
    target, _, prompts = embedded
    for tokens in ([5, 6], list(range(5, 5 + 30))):
        with pytest.raises(ValueError, match="expected texts that end where the options end them"):
            trace_arm(target, "ngram", "greedy", Tracing({"max_new_tokens": 8, **GREEDY}), prompts[:1], [tokens])


def test_drawn_trees_are_refused(embedded):
    target, draft, prompts = embedded
    drafter = drafter_of("draft_model", target, draft, num_tree_nodes=5, draft_sample_method="probabilistic")
    with pytest.raises(ValueError, match="got a drawn tree"):
        trace_arm(target, drafter, "rejection", Tracing({"max_new_tokens": 4, **SAMPLED}), prompts[:1])


CHAINS = [("ngram", {}), ("draft_model", {}), ("draft_model", {"draft_sample_method": "coupled"})]
CHAINS += [("eagle3", {}), ("medusa", {})]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("name", "options"), CHAINS)
def test_chains_at_every_length(embedded, tmp_path, name, options, sampling):
    longest = 4 if name == "medusa" else 5
    trace = traced(embedded, name, sampling, tmp_path, num_speculative_tokens=longest, **options)
    for length in (1, 2, longest - 1, longest):
        drafter = drafter_of(name, *embedded[:2], num_speculative_tokens=length, **options)
        assert_as_live(embedded, trace, Setting(num_speculative_tokens=length), drafter, sampling)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["draft_model", "eagle3", "medusa", "block"])
def test_trees_of_every_size(embedded, tmp_path, name, sampling):
    trace = traced(embedded, name, sampling, tmp_path, **TREE)
    for size in (1, 5, 8, 12):
        drafter = drafter_of(name, *embedded[:2], **{**TREE, "num_tree_nodes": size})
        assert_as_live(embedded, trace, Setting(num_tree_nodes=size), drafter, sampling)
