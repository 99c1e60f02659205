"""The draft model: whatever happened before, its rows are those of a forward from scratch."""

import copy

import pytest

from specdec import rollout
from specdec.cache import CacheFull
from specdec.draft_models.draft_model import DraftModel
from specdec.target import PagedModel
from tests.toys.recomputed import compare_rows
from tests.toys.sessions import PROMPTS, Session, rows_after, sampling, tiny_model

MODEL = tiny_model()


@pytest.fixture
def checked(monkeypatch):
    """Compares every row the draft model gives with a from-scratch forward; holds how many were compared."""
    twins = {}

    def watch(drafter):  # from here on: building a drafter runs its model, too
        model = drafter._model.model
        twins[model] = copy.deepcopy(model)  # the model itself is still set to our attention when rows are compared
        watch.count = compare_rows(
            monkeypatch, PagedModel, lambda paged, tokens, _: rows_after(tokens, twins[paged.model])[-1]
        )
        return drafter

    return watch


OPTIONS = [
    {},
    {"num_tree_nodes": 7, "tree_width": 3},
    {"draft_sample_method": "probabilistic"},
    {"draft_sample_method": "probabilistic", "num_tree_nodes": 6, "tree_width": 2},
    {"draft_sample_method": "coupled", "num_tree_nodes": 6},
    {"draft_sample_method": "coupled", "confidence_threshold": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_are_those_of_a_forward_from_scratch_after_any_history(options, checked):
    session = Session(checked(DraftModel(MODEL, 4, **options)), sampler=sampling())
    session.wander(str(options), num_rounds=10)
    assert sum(checked.count) > 30


def test_proposing_twice_gives_the_same_drafts(checked):
    for options in OPTIONS:
        session = Session(DraftModel(MODEL, 4, **options), sampler=sampling())
        first, second = session.propose([4, 3, 2]), session.propose([4, 3, 2])
        for one, other in zip(first, second, strict=True):
            assert one.tree.tokens == other.tree.tokens
            assert one.tree.parents == other.tree.parents


def test_greedy_chain_is_the_models_own_greedy_continuation():
    (draft,) = Session(DraftModel(MODEL, 4), PROMPTS[:1]).propose([9])
    tokens = list(PROMPTS[0])
    for _ in range(4):
        tokens.append(int(rows_after(tokens, MODEL)[-1].argmax()))
    assert draft.tree.is_chain and draft.tree.tokens == tokens[-5:]
    assert not any(draft.sampled) and draft.probs is None


def test_one_forward_per_level_for_all_requests_and_catching_up_is_part_of_the_first(monkeypatch):
    session = Session(DraftModel(MODEL, 4))
    calls = []  # what each pass runs: chunks, or the tables of a step
    for name in ("score", "step"):
        original = getattr(PagedModel, name)
        monkeypatch.setattr(PagedModel, name, lambda *args, run=original: calls.append(args[2]) or run(*args))
    drafts = session.propose([4, 2, 0])
    assert [len(requests) for requests in calls] == [2, 2, 1, 1]
    assert [len(chunk.tree) for chunk in calls[0]] == [8, 1]
    calls.clear()
    session.settle(0, drafts[0], [1, 2, 3, 4], 7)  # the last drafted token was not run, nor is the new pending one
    session.settle(1, drafts[1], [1], 7)
    session.propose([1, 1, 1])
    assert [len(chunk.tree) for chunk in calls[0]] == [2, 1, 11]


def test_filled_rows_are_right_when_the_draft_is_done():
    chain, tree = DraftModel(MODEL, 4), DraftModel(MODEL, 4, num_tree_nodes=6)
    for drafter, filled in ((chain, 7 + 4), (tree, 7 + 1)):
        session = Session(drafter, PROMPTS[:1])
        session.propose([9])
        assert session.tables[0].filled[drafter.pool] == filled


def test_budget_zero_runs_nothing(monkeypatch):
    session = Session(DraftModel(MODEL, 4))
    monkeypatch.setattr(PagedModel, "score", None)
    assert [len(draft) for draft in session.propose([0, 0, 0])] == [1, 1, 1]


def test_long_gaps_are_caught_up_in_pieces(monkeypatch, checked):
    monkeypatch.setattr(rollout, "MAX_CATCH_UP", 3)
    session = Session(checked(DraftModel(MODEL, 2)))
    session.propose([2, 2, 2])
    assert checked.count[:6] == [0] * 5 + [3]  # 7 rows: two pieces, 0 rows: none, 10 rows: three; then all together


def test_drafts_end_where_the_models_positions_end():
    drafter = DraftModel(tiny_model(max_positions=10), 9)
    (draft,) = Session(drafter, PROMPTS[:1]).propose([9])
    assert len(draft) - 1 == 3  # rows 7, 8 and 9 are run
    assert len(Session(drafter, [list(range(11))]).propose([9])[0]) == 1


def test_confidence_stop_keeps_the_token_that_caused_it():
    (whole,) = Session(DraftModel(MODEL, 6), PROMPTS[:1]).propose([9])
    rows = rows_after([*PROMPTS[0], *whole.tree.tokens[1:]], MODEL)[len(PROMPTS[0]) - 1 : -1]
    own = rows.softmax(-1).amax(-1).tolist()
    threshold = sorted(own)[1] + 1e-6  # two of six tokens are below
    (cut,) = Session(DraftModel(MODEL, 6, confidence_threshold=threshold), PROMPTS[:1]).propose([9])
    length = next(i for i, value in enumerate(own, start=1) if value < threshold)
    assert cut.tree.tokens == whole.tree.tokens[: length + 1]


def test_a_full_cache_is_reported_and_nothing_is_lost():
    session = Session(DraftModel(MODEL, 5), PROMPTS[:1], max_pages=2)
    with pytest.raises(CacheFull):
        session.propose([5])
    session.cache.check()
    assert len(session.propose([0])[0]) == 1
