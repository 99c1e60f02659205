"""What the draft model proposes: drawn, coupled and chosen tokens, vocabularies and options."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from transformers.generation import PrefixConstrainedLogitsProcessor, RepetitionPenaltyLogitsProcessor

from specdec.chains import SampleMethod
from specdec.draft_models.draft_model import DraftModel
from specdec.growth import static_shape
from specdec.protocols import RequestView
from specdec.sampling import Context, Sampler
from specdec.tree import TokenTree
from specdec.vocabulary import check_vocabulary
from tests.toys.sessions import PROMPTS, Session, rows_after, sampling, tiny_model

MODEL = tiny_model()


def final_row(sampler, tokens, path, row):
    """What the request would sample from after `path`, by the draft model."""
    context = Context(tokens, TokenTree.chain([tokens[-1], *path]), row, first=len(path))
    return sampler.scores(rows_after([*tokens, *path], MODEL)[-1:], [context])[0]


@pytest.mark.parametrize("options", [{}, {"num_tree_nodes": 6, "tree_width": 3}], ids=str)
def test_drawn_rows_are_the_requests_own_final_distribution(options):
    session = Session(DraftModel(MODEL, 4, "probabilistic", **options), sampler=sampling())
    for index, draft in enumerate(session.propose([4, 4, 3])):
        tokens = draft.tree.tokens
        assert draft.sampled == [False] + [True] * (len(draft) - 1)
        for node, children in enumerate(draft.tree.children()):
            if not children:
                assert not draft.probs[node].any()
                continue
            path = draft.tree.tokens_at(draft.tree.path_to(node))
            wanted = final_row(session.sampler, session.tokens[index], path, index).softmax(-1)
            torch.testing.assert_close(draft.probs[node], wanted)
            start = len(session.tokens[index])
            assert tokens[children[0]] == session.noises[index].draft_token(draft.probs[node], start, node, 0)


def test_shape_of_a_drawn_tree_does_not_depend_on_what_is_drawn():
    drafter = DraftModel(MODEL, 4, "probabilistic", num_tree_nodes=6, tree_width=3)
    shape = static_shape([0.7, 0.21, 0.063], 6, 4)
    for prompt in PROMPTS:
        assert Session(drafter, [prompt], sampling()).propose([9])[0].tree.parents == shape


@pytest.mark.parametrize("num_tree_nodes", [None, 6])
def test_coupled_drafts_of_the_target_itself_are_what_the_target_draws(num_tree_nodes):
    session = Session(DraftModel(MODEL, 4, "coupled", num_tree_nodes), sampler=sampling())
    for index, draft in enumerate(session.propose([4, 4, 4])):
        said = list(session.tokens[index])
        for place in range(len(said), len(said) + 4):
            path = said[len(session.tokens[index]) :]
            row = final_row(session.sampler, session.tokens[index], path, index)
            said += session.noises[index].target_tokens(row[None], [place])
        paths = [draft.tree.tokens_at(draft.tree.path_to(node)) for node in range(len(draft))]
        if num_tree_nodes is None:
            assert paths[-1] == said[-4:]
        else:
            assert said[len(session.tokens[index]) :][: max(map(len, paths))] in paths
        assert not any(draft.sampled) and draft.probs is None


@pytest.mark.parametrize("method", ["probabilistic", "coupled"])
def test_greedy_requests_get_the_likeliest_tokens_whatever_the_method(method):
    wanted = Session(DraftModel(MODEL, 4)).propose([4, 4, 4])
    for draft, same in zip(Session(DraftModel(MODEL, 4, method)).propose([4, 4, 4]), wanted, strict=True):
        assert draft.tree.tokens == same.tree.tokens and not any(draft.sampled)


def test_processors_of_a_greedy_request_are_heeded_and_warpers_of_a_sampling_one_are_not():
    for do_sample in (False, True):
        sampler = Sampler([RepetitionPenaltyLogitsProcessor(4.0)], do_sample)
        session = Session(DraftModel(MODEL, 6), PROMPTS[:1], sampler)
        (draft,) = session.propose([6])
        path = []
        for _ in range(6):
            final = final_row(sampler, PROMPTS[0], path, 0)
            path.append(int((rows_after([*PROMPTS[0], *path], MODEL)[-1] if do_sample else final).argmax()))
        assert draft.tree.tokens[1:] == path


def test_requests_that_sample_and_that_do_not_go_together():
    drafter = DraftModel(MODEL, 3, "probabilistic")
    alone = Session(drafter, sampler=sampling()).propose([0, 3, 0])[1]
    session = Session(drafter)
    views = session.views([0, 1, 2])
    views[1] = RequestView(1, session.tokens[1], 1, session.tables[1], sampling(), session.cache, row=1)
    drafts = drafter.propose(views, [3, 3, 3], session.noises)
    assert [any(draft.sampled) for draft in drafts] == [False, True, False]
    assert drafts[1].tree.tokens == alone.tree.tokens


def test_draft_temperature_divides_the_final_scores():
    session = Session(DraftModel(MODEL, 1, "probabilistic", draft_temperature=0.5), sampler=sampling())
    (draft, *_) = session.propose([1, 0, 0])
    wanted = (final_row(session.sampler, session.tokens[0], [], 0) / 0.5).softmax(-1)
    torch.testing.assert_close(draft.probs[0], wanted)


def test_padding_is_seen_by_processors_only():
    penalised = Sampler([RepetitionPenaltyLogitsProcessor(5.0)], do_sample=True)
    session = Session(DraftModel(MODEL, 1, "probabilistic"), [[5, 3]], penalised)
    view = RequestView(0, [5, 3], 2, session.tables[0], penalised, session.cache, padding=[11, 11])
    (draft,) = session.drafter.propose([view], [1], session.noises)
    wanted = penalised.scores(rows_after([5, 3], MODEL)[-1:], [Context([11, 11, 5, 3], TokenTree.chain([3]), 0)])
    torch.testing.assert_close(draft.probs[0], wanted[0].softmax(-1))


@pytest.mark.parametrize("target_size", [200, 204])
@pytest.mark.parametrize("method", ["greedy", "probabilistic", "coupled"])
def test_padded_vocabularies_are_cut_or_filled_up(target_size, method):
    model = tiny_model(202)
    with torch.no_grad():
        model.lm_head.weight[200:] = model.lm_head.weight[:2] * 3  # padding that is likelier than it should be
    drafter = DraftModel(model, 3, method)
    drafter.check(SimpleNamespace(vocab_size=target_size, pool_name="target"))
    (draft,) = Session(drafter, PROMPTS[:1], sampling()).propose([3])
    assert max(draft.tree.tokens) < target_size
    if method == "probabilistic":
        assert draft.probs.shape == (4, target_size)
        torch.testing.assert_close(draft.probs[:3].sum(-1), torch.ones(3))
        assert not draft.probs[:, 202:].any()


@pytest.mark.parametrize("options", [{}, {"num_tree_nodes": 5, "tree_width": 2}], ids=str)
@pytest.mark.parametrize("method", ["greedy", "probabilistic", "coupled"])
def test_tokens_that_only_the_target_has_are_survived(method, options):
    """In the text and, where a processor leaves nothing else, in the draft."""
    drafter = DraftModel(tiny_model(200), 3, method, **options)
    drafter.check(SimpleNamespace(vocab_size=204, pool_name="target"))
    only = Sampler([PrefixConstrainedLogitsProcessor(lambda row, prefix: [202, 203], 1)], do_sample=True)
    for sampler in (only, sampling()):
        (draft,) = Session(drafter, [[5, 201, 3, 203]], sampler).propose([3])
        draft.require_sound(203, 3, 204)
        if sampler is only and method != "greedy":
            assert len(draft) > 1 and set(draft.tree.tokens[1:]) <= {202, 203}


def test_other_vocabularies_are_refused():
    with pytest.raises(ValueError, match="expected .* vocabulary of 4096 tokens, got 23;"):
        DraftModel(MODEL).check(SimpleNamespace(vocab_size=4096, pool_name="target"))
    ours, other = ({"a": 0, "b": 1}, {"a": 0, "b": 2})
    tokenizers = [SimpleNamespace(get_vocab=lambda vocab=vocab: vocab) for vocab in (ours, ours, other)]
    check_vocabulary(4096, 23, (tokenizers[0], tokenizers[1]))
    with pytest.raises(ValueError, match="expected .* 2 entries differ;"):
        check_vocabulary(23, 23, (tokenizers[0], tokenizers[2]))


@pytest.mark.parametrize(
    "options",
    [
        {"num_speculative_tokens": 0},
        {"num_tree_nodes": 0},
        {"num_tree_nodes": 4, "tree_width": 0},
        {"tree_width": 2},
        {"num_tree_nodes": 4, "speculative_token_tree": [(0,)]},
        {"speculative_token_tree": [(0,), (1, 0)]},
        {"speculative_token_tree": [(0,), ()]},
        {"speculative_token_tree": []},
        {"speculative_token_tree": [(0,), (-1,)]},
        {"speculative_token_tree": "[(0,"},
        {"speculative_token_tree": "here"},
        {"speculative_token_tree": 7},
        {"draft_sample_method": "sampled"},
        {"confidence_threshold": 1.5},
        {"draft_temperature": 0.0, "draft_sample_method": "coupled"},
        {"draft_temperature": 0.5},
    ],
    ids=str,
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"expected .* got .*"):
        DraftModel(MODEL, **options)


@pytest.mark.parametrize("method", get_args(SampleMethod))
def test_trees_of_a_given_shape(method):
    """Written as vLLM writes them; drawn nodes fill it, chosen ones have the ranks."""
    choices = [(0,), (1,), (0, 0), (0, 1), (1, 0)]
    for written in (choices, str(choices), [list(path) for path in reversed(choices)]):
        drafter = DraftModel(MODEL, draft_sample_method=method, speculative_token_tree=written)
        (draft,) = Session(drafter, PROMPTS[:1], sampling()).propose([9])
        assert draft.tree.parents == [-1, 0, 0, 1, 1, 2] and drafter.needs.tree
        (cut,) = Session(drafter, PROMPTS[:1], sampling()).propose([1])
        assert cut.tree.parents == [-1, 0, 0]
    if method == "greedy":
        (first, second), row = draft.tree.tokens[1:3], rows_after(PROMPTS[0], MODEL)[-1]
        assert [first, second] == row.topk(2).indices.tolist()
        below = rows_after([*PROMPTS[0], first], MODEL)[-1].topk(2).indices.tolist()
        assert draft.tree.tokens[3:5] == below


def test_needs_say_what_is_proposed():
    needs = {method: DraftModel(MODEL, draft_sample_method=method).needs for method in get_args(SampleMethod)}
    assert not any(need.tree for need in needs.values())
    assert [method for method, need in needs.items() if need.sampled] == ["probabilistic"]
    assert DraftModel(MODEL, num_tree_nodes=3).needs.tree
