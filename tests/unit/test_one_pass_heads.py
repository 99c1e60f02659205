"""Medusa, P-EAGLE and block heads: whatever happened before, their rows are those of a computation from scratch."""

import copy

import pytest
import torch

from specdec import rollout
from specdec.draft_models.block_network import BlockNetwork, BlockShape
from specdec.draft_models.dflash import DFlash
from specdec.draft_models.marginals import Marginals
from specdec.draft_models.medusa import Medusa, MedusaNetwork
from specdec.draft_models.peagle import PEagle, PEagleNetwork
from specdec.sampling import Context
from specdec.tree import TokenTree
from tests.toys import heads
from tests.toys.heads import DRAFT_TOKENS, HeadSession, block, block_row, medusa_row, tiny_target
from tests.toys.parallel_heads import PARALLEL, peagle, peagle_row
from tests.toys.recomputed import compare_rows
from tests.toys.sessions import PROMPTS, VOCAB, sampling

ONE_PASS = heads.ONE_PASS | PARALLEL
TARGET = tiny_target()
TWIN = copy.deepcopy(TARGET)  # transformers leaves hooks on a model that was asked for hidden states
OPTIONS = [
    {},
    {"num_tree_nodes": 7, "tree_width": 3},
    {"speculative_token_tree": [(0,), (1,), (0, 0), (0, 2), (1, 0), (0, 0, 1)]},
    {"draft_sample_method": "probabilistic"},
    {"draft_sample_method": "probabilistic", "num_tree_nodes": 6, "tree_width": 2},
    {"draft_sample_method": "coupled", "num_tree_nodes": 6},
    {"draft_sample_method": "coupled", "confidence_threshold": 0.1},
]


KINDS = {MedusaNetwork: Medusa, PEagleNetwork: PEagle, BlockNetwork: DFlash}


def drafter_of(network, depth=4, **options):
    return KINDS[type(network)](network, depth, **options)


def row_after(network, tokens, num_committed, depth):
    """Logits [vocab], recomputed."""
    if isinstance(network, BlockNetwork):
        return block_row(network, TWIN, tokens, num_committed, depth)[0]
    row = medusa_row if isinstance(network, MedusaNetwork) else peagle_row
    return row(network, TWIN, tokens, num_committed)


def row_of(head, tokens, num_committed):
    return row_after(head.network, tokens, num_committed, head.depth)


@pytest.fixture
def compared(monkeypatch):
    """From here on every row of a head is compared; how many rows each call gave."""
    return compare_rows(monkeypatch, Marginals, row_of)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ONE_PASS)
def test_rows_are_those_of_a_computation_from_scratch_after_any_history(name, options, compared):
    session = HeadSession(drafter_of(ONE_PASS[name](), **options), TARGET, sampler=sampling())
    session.wander(str(options), num_rounds=8)
    assert sum(compared) > 10


def rows_of(network, tokens, depth=4):
    """Logits [depth, vocab] behind a text, as they are before any of it is drafted."""
    return torch.stack([row_after(network, [*tokens, *[0] * i], len(tokens), depth) for i in range(depth)])


INDEPENDENT = ["medusa", "block", "block of Llama's kind, one layer", "peagle"]


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_greedy_chain_is_the_likeliest_token_of_each_row(name):
    network = ONE_PASS[name]()
    session = HeadSession(drafter_of(network), TARGET)
    drafts = session.propose([9, 0, 2])
    assert [len(draft) for draft in drafts] == [5, 1, 3]
    for index in (0, 2):
        wanted = rows_of(network, PROMPTS[index]).argmax(-1).tolist()
        assert drafts[index].tree.tokens[1:] == wanted[: len(drafts[index]) - 1]
        assert drafts[index].probs is None and drafts[index].tree.is_chain


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_tree_holds_the_largest_products_of_probabilities(name):
    """DDTree: of all sequences, compared with each of them."""
    network = ONE_PASS[name]()
    (draft,) = HeadSession(drafter_of(network, 2, num_tree_nodes=30), TARGET, PROMPTS[:1]).propose([9])
    first, second = rows_of(network, PROMPTS[0], 2).float().softmax(-1).tolist()
    values = {(a,): first[a] for a in range(VOCAB)} | {
        (a, b): first[a] * second[b] for a in range(VOCAB) for b in range(VOCAB)
    }
    best = sorted(values, key=values.get, reverse=True)[:30]
    paths = [tuple(draft.tree.tokens_at(draft.tree.path_to(node))) for node in range(1, len(draft))]
    assert sorted(paths) == sorted(best)
    wanted = torch.tensor([1.0, *[values[path] for path in paths]]).log()
    torch.testing.assert_close(draft.scores, wanted, rtol=0, atol=1e-4)
    narrow = drafter_of(network, 2, num_tree_nodes=30, tree_width=2)
    (draft,) = HeadSession(narrow, TARGET, PROMPTS[:1]).propose([9])
    assert max(map(len, draft.tree.children())) == 2 and len(draft) == 7


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_tree_of_fixed_shape_holds_the_tokens_of_its_ranks(name):
    network, choices = ONE_PASS[name](), [(0,), (2,), (0, 1), (0, 1, 0)]
    drafter = drafter_of(network, None, speculative_token_tree=str(choices))
    (draft,) = HeadSession(drafter, TARGET, PROMPTS[:1]).propose([9])
    ranked = rows_of(network, PROMPTS[0], 3).argsort(descending=True).tolist()
    paths = [draft.tree.tokens_at(draft.tree.path_to(node)) for node in range(1, len(draft))]
    assert paths == [[ranked[level][rank] for level, rank in enumerate(path)] for path in choices]
    assert drafter.needs.tree


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_chain_at_once_is_the_chain_token_by_token(name, monkeypatch):
    whole = HeadSession(drafter_of(ONE_PASS[name]()), TARGET).propose([4, 4, 4])
    monkeypatch.setattr(Marginals, "chain", lambda *_: None)
    assert [draft.tree for draft in HeadSession(drafter_of(ONE_PASS[name]()), TARGET).propose([4, 4, 4])] == [
        draft.tree for draft in whole
    ]


def test_rows_are_made_once_however_the_draft_grows():
    for name in ("block with a Markov head", "peagle"):
        calls, network = [], ONE_PASS[name]()
        network.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for options in OPTIONS:
            session = HeadSession(drafter_of(network, **options), TARGET, sampler=sampling())
            calls.clear()
            session.propose([4, 4, 4])
            assert len(calls) == 1


def test_the_markov_head_sees_the_token_that_was_drafted():
    network = ONE_PASS["block with a Markov head"]()
    (draft,) = HeadSession(drafter_of(network), TARGET, PROMPTS[:1]).propose([9])
    tokens = list(PROMPTS[0])
    for _ in range(4):
        tokens.append(int(block_row(network, TWIN, tokens, len(PROMPTS[0]), 4)[0].argmax()))
    assert draft.tree.tokens[1:] == tokens[-4:]


@torch.no_grad()
@pytest.mark.parametrize("name", ["block with a Markov head", "block with a gated Markov head"])
@pytest.mark.parametrize("method", ["greedy", "probabilistic", "coupled"])
def test_a_chain_ends_where_its_acceptance_is_unlikely(name, method):
    network = ONE_PASS[name]()
    sampler = sampling() if method != "greedy" else None
    (whole,) = HeadSession(drafter_of(network, draft_sample_method=method), TARGET, PROMPTS[:1], sampler).propose([9])
    text, accepted, chances = [*PROMPTS[0], *whole.tree.tokens[1:]], 1.0, []
    for count in range(len(PROMPTS[0]), len(PROMPTS[0]) + 4):
        hidden = block_row(network, TWIN, text[:count], len(PROMPTS[0]), 4)[1]
        if network.confidence_head.proj.in_features > len(hidden):
            hidden = torch.cat((hidden, network.markov_head.markov_w1.weight[text[count - 1]]))
        accepted *= float(torch.sigmoid(network.confidence_head.proj(hidden)))
        chances.append(accepted)
    for length in range(5):  # the threshold lies between the chances of tokens number `length` and `length` + 1
        bounds = [1.0, *chances, 0.0][length : length + 2]
        drafter = drafter_of(network, draft_sample_method=method, confidence_threshold=sum(bounds) / 2)
        (cut,) = HeadSession(drafter, TARGET, PROMPTS[:1], sampler).propose([9])
        assert cut.tree.tokens == whole.tree.tokens[: length + 1]
        cut.require_sound(PROMPTS[0][-1], 9, VOCAB)
        if method == "probabilistic" and length:
            assert torch.equal(cut.probs[:length], whole.probs[:length]) and not cut.probs[length:].any()
            assert cut.sampled == [False] + [True] * length


@pytest.mark.parametrize("name", ["medusa", "block with a gated Markov head", "peagle"])
def test_drawn_rows_are_the_requests_own_final_distribution(name):
    network, sampler = ONE_PASS[name](), sampling()
    session = HeadSession(drafter_of(network, draft_sample_method="probabilistic"), TARGET, sampler=sampler)
    for index, draft in enumerate(session.propose([4, 4, 3])):
        if len(draft) == 1:
            continue
        assert draft.sampled == [False] + [True] * (len(draft) - 1)
        for node in range(len(draft) - 1):
            path, tokens = draft.tree.tokens[1 : node + 1], PROMPTS[index]
            row = row_of(session.drafter._head, [*tokens, *path], len(tokens))
            context = Context(tokens, TokenTree.chain([tokens[-1], *path]), index, first=len(path))
            wanted = sampler.scores(row[None], [context])[0].softmax(-1)
            torch.testing.assert_close(draft.probs[node], wanted)
            assert float(wanted[draft.tree.tokens[node + 1]]) > 0
            if network.d2t is not None:
                assert not wanted[[token for token in range(VOCAB) if token not in DRAFT_TOKENS]].any()
    assert session.drafter.needs.sampled


@pytest.mark.parametrize("name", ONE_PASS)
def test_long_gaps_are_caught_up_in_pieces(name, monkeypatch, compared):
    """Pieces in front of the last one give no rows, and the drafts are those of one piece."""
    whole = HeadSession(drafter_of(ONE_PASS[name](), 2), TARGET).propose([2, 2, 2])
    monkeypatch.setattr(rollout, "MAX_CATCH_UP", 3)
    compared.clear()
    session = HeadSession(drafter_of(ONE_PASS[name](), 2), TARGET)
    assert [draft.tree for draft in session.propose([2, 2, 2])] == [draft.tree for draft in whole]
    assert compared[:6] == [0] * 5 + [2]


@pytest.mark.parametrize("num_known", [VOCAB - 1, VOCAB + 1])
def test_a_markov_head_may_know_a_token_more_or_less_than_the_target(num_known):
    """A published head pads its vocabulary as its target did, or not; of a token it lacks the last one stands in."""
    network = block(markov=(3, "gated"), confidence="markov", vocab_size=num_known)
    prompt = [*PROMPTS[0], VOCAB - 1]
    drafter = drafter_of(network, confidence_threshold=1e-9)
    (draft,) = HeadSession(drafter, TARGET, [prompt]).propose([9])
    wider = block(markov=(3, "gated"), confidence="markov")
    state = wider.state_dict()
    for name, part in network.state_dict().items():
        rows = part if part.shape == state[name].shape else part[:VOCAB]
        state[name] = torch.cat((rows, rows[-1:]))[:VOCAB] if name.endswith("markov_w1.weight") else rows
    if num_known < VOCAB:
        w2 = state["markov_head.markov_w2.weight"]
        state["markov_head.markov_w2.weight"] = torch.cat((w2, torch.zeros_like(w2[:1])))
    wider.load_state_dict(state)
    assert draft.tree == HeadSession(drafter_of(wider), TARGET, [prompt]).propose([9])[0].tree and len(draft) == 5


@pytest.mark.parametrize("name", ONE_PASS)
def test_proposing_twice_gives_the_same_drafts(name):
    for options in OPTIONS:
        session = HeadSession(drafter_of(ONE_PASS[name](), **options), TARGET, sampler=sampling())
        first, second = session.propose([4, 3, 2]), session.propose([4, 3, 2])
        assert [draft.tree for draft in first] == [draft.tree for draft in second]


def test_drafts_reach_as_far_as_the_network_and_no_further():
    for name, reach in (("medusa", 5), ("block", 5), ("block that drafts from the pending token, too", 6)):
        network = ONE_PASS[name]()
        assert len(HeadSession(drafter_of(network, reach), TARGET, PROMPTS[:1]).propose([9])[0]) == reach + 1
        assert len(HeadSession(drafter_of(network, None), TARGET, PROMPTS[:1]).propose([9])[0]) == 6
        with pytest.raises(ValueError, match=f"expected at most {reach} drafted tokens of this network, got 7"):
            drafter_of(network, 7)
    for depth in (1, 9):  # any that is asked for
        (draft,) = HeadSession(drafter_of(peagle(), depth), TARGET, PROMPTS[:1]).propose([9])
        assert draft.tree.tokens[1:] == rows_of(peagle(), PROMPTS[0], depth).argmax(-1).tolist()
    assert len(HeadSession(drafter_of(peagle(), None), TARGET, PROMPTS[:1]).propose([9])[0]) == 6
    network = ONE_PASS["medusa"]()
    with pytest.raises(ValueError, match="expected at most 5 drafted tokens of this network, got 6"):
        drafter_of(network, None, speculative_token_tree=[(0,) * count for count in range(1, 7)])


def test_a_mask_token_without_embedding_is_refused():
    parallel = peagle()
    parallel.mask_token_id = VOCAB
    for network in (block(shape=BlockShape(4, mask_token_id=VOCAB)), parallel):
        with pytest.raises(ValueError, match="expected a mask token below the 23 that have embeddings, got 23"):
            HeadSession(drafter_of(network, 3), TARGET)


def test_a_confidence_head_that_reads_a_markov_head_needs_one():
    with pytest.raises(ValueError, match="expected a Markov head beside a confidence head that reads it"):
        block(confidence="markov")
