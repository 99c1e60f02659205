"""Heads of the EAGLE family: whatever happened before, their rows are those of a computation from scratch."""

import copy
import random

import pytest

from specdec import rollout
from specdec.draft_models import paged_head
from specdec.draft_models.eagle import Eagle
from specdec.draft_models.eagle3 import Eagle3, Eagle3Network
from specdec.draft_models.paged_head import PagedHead
from specdec.features import FeatureRows
from tests.toys.heads import DRAFT_TOKENS, STEPPING, HeadSession, stepping_row, tiny_target
from tests.toys.recomputed import compare_rows
from tests.toys.sessions import PROMPTS, VOCAB, sampling

TARGET = tiny_target()
OPTIONS = [
    {},
    {"num_tree_nodes": 7, "tree_width": 3},
    {"draft_sample_method": "probabilistic"},
    {"draft_sample_method": "probabilistic", "num_tree_nodes": 6, "tree_width": 2},
    {"draft_sample_method": "coupled", "num_tree_nodes": 6},
    {"draft_sample_method": "coupled", "confidence_threshold": 0.1},
]


def drafter_of(network, depth=4, **options):
    return (Eagle3 if isinstance(network, Eagle3Network) else Eagle)(network, depth, **options)


@pytest.fixture
def compared(monkeypatch):
    """From here on every row of a head is compared; how many rows each call gave."""
    twin = copy.deepcopy(TARGET)  # transformers leaves hooks on a model that was asked for hidden states
    return compare_rows(
        monkeypatch, PagedHead, lambda head, tokens, count: stepping_row(head.network, twin, tokens, count)
    )


CASES = [(name, options) for name in STEPPING for options in (OPTIONS if name in ("eagle", "eagle3") else OPTIONS[:2])]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_rows_are_those_of_a_computation_from_scratch_after_any_history(name, options, compared):
    session = HeadSession(drafter_of(STEPPING[name](), **options), TARGET, sampler=sampling())
    session.wander(str(options), num_rounds=8)
    assert sum(compared) > 15


def proposed_and_settled(session):
    """Two rounds, of which the first is accepted in part."""
    (draft,) = session.propose([4])
    session.settle(0, draft, [1, 2], 7)
    session.propose([4])


def test_what_a_head_must_not_do_is_noticed(compared, monkeypatch):
    """Rows of drafted tokens that stay, features of the row itself, row 0 in view, states of another parent."""

    def kept(self, views, budgets, noises):
        for view in views:
            view.table.filled[self.pool] = max(1, view.table.filled[self.pool])
        return super(Eagle, self)._proposals(views, budgets, noises)

    rows = FeatureRows.rows
    planted = {
        "rows that stay": (Eagle, "_proposals", kept),
        "the next row's features": (FeatureRows, "rows", lambda *args: rows(*args).roll(1, 0)),
        "row 0 in view": (paged_head, "behind_row_0", lambda given: given),
    }
    for owner, name, bug in planted.values():
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr(owner, name, bug)
            proposed_and_settled(HeadSession(drafter_of(STEPPING["eagle3"]()), TARGET, PROMPTS[:1]))
    proposed_and_settled(HeadSession(drafter_of(STEPPING["eagle3"]()), TARGET, PROMPTS[:1]))


@pytest.mark.parametrize("name", STEPPING)
def test_a_greedy_chain_is_the_heads_own_greedy_continuation(name):
    network, twin = STEPPING[name](), copy.deepcopy(TARGET)
    (draft,) = HeadSession(drafter_of(network), TARGET, PROMPTS[:1]).propose([9])
    tokens = list(PROMPTS[0])
    for _ in range(4):
        tokens.append(int(stepping_row(network, twin, tokens, len(PROMPTS[0])).argmax()))
    assert draft.tree.is_chain and draft.tree.tokens == tokens[-5:]
    assert not any(draft.sampled) and draft.probs is None


@pytest.mark.parametrize("name", STEPPING)
def test_a_chain_at_once_is_the_chain_token_by_token(name, monkeypatch):
    drafts = {}
    for is_whole in (True, False):
        chance, session = random.Random(1), HeadSession(drafter_of(STEPPING[name]()), TARGET)
        if not is_whole:
            monkeypatch.setattr(PagedHead, "chain", lambda *_: None)
        drafts[is_whole] = []
        for _ in range(6):
            found = session.propose([4, 4, 4])
            drafts[is_whole] += [draft.tree.tokens for draft in found]
            for index, draft in enumerate(found):
                session.settle(index, draft, list(range(1, chance.randrange(len(draft)) + 1)), chance.randrange(VOCAB))
    assert drafts[True] == drafts[False]


def test_proposing_twice_gives_the_same_drafts():
    for options in OPTIONS:
        session = HeadSession(drafter_of(STEPPING["eagle3"](), **options), TARGET, sampler=sampling())
        first, second = session.propose([4, 3, 2]), session.propose([4, 3, 2])
        assert [draft.tree for draft in first] == [draft.tree for draft in second]


def test_tokens_that_a_head_does_not_know_are_never_drawn():
    drafter = drafter_of(STEPPING["eagle3"](), draft_sample_method="probabilistic", num_tree_nodes=12, tree_width=4)
    session = HeadSession(drafter, TARGET, sampler=sampling())
    unknown = [token for token in range(VOCAB) if token not in DRAFT_TOKENS]
    for draft in session.propose([4, 4, 4]):
        assert not draft.probs[:, unknown].any() if draft.probs is not None else len(draft) == 1
        assert set(draft.tree.tokens[1:]) <= set(DRAFT_TOKENS)


def test_long_gaps_are_caught_up_in_pieces(monkeypatch, compared):
    monkeypatch.setattr(rollout, "MAX_CATCH_UP", 3)
    session = HeadSession(drafter_of(STEPPING["eagle3"](), 2), TARGET)
    session.propose([2, 2, 2])
    assert compared[:6] == [0] * 5 + [2]  # 7 rows: two pieces, no row: no draft, 10 rows: three; then both together


def test_drafts_end_where_the_heads_positions_end():
    network = STEPPING["eagle3"]()
    network.config.max_position_embeddings = 10
    (draft,) = HeadSession(drafter_of(network, 9), TARGET, PROMPTS[:1]).propose([9])
    assert len(draft) - 1 == 3


def test_a_text_of_one_token_has_nothing_to_read():
    assert [len(draft) for draft in HeadSession(drafter_of(STEPPING["eagle3"]()), TARGET).propose([4, 4, 4])] == [
        5,
        1,
        5,
    ]


def test_requests_that_begin_alike_share_what_the_head_made(compared, monkeypatch):
    """Rows of whole pages are not made again, and not by the target either."""
    session = HeadSession(drafter_of(STEPPING["eagle3"]()), TARGET, PROMPTS[:1])
    session.propose([4])
    again = [*PROMPTS[0], 5]
    session.tokens.append(again)
    session.noises.append(session.noises[0])
    session.tables.append(session.opened(again))
    table = session.tables[1]
    assert table.pages[0] == session.tables[0].pages[0] and table.filled[session.drafter.pool] == 4
    chunks, original = [], PagedHead.score
    monkeypatch.setattr(PagedHead, "score", lambda *args: chunks.extend(args[2]) or original(*args))
    session.propose([4], [1])
    assert [(chunk.start, len(chunk.tree)) for chunk in chunks] == [(4, 5)]
    session.cache.check()
