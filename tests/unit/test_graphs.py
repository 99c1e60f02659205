"""What captured passes hang on: whose memory they read, for which shapes, and how long they live."""

import gc
import weakref

import pytest
import torch

from specdec import attention, graphs
from specdec.buckets import MIN_PREFIX, chain_keys, key_of
from specdec.cache import PagedKVCache
from specdec.chunk import Inputs, inputs_ahead
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.eagle3 import Eagle3
from specdec.kernels.rows import RequestRows
from specdec.kernels.tree_tables import StaticRows
from specdec.methods import build_drafter
from specdec.target import Chunk, PagedModel
from specdec.tree import TokenTree
from tests.toys.heads import STEPPING, HeadSession, tiny_target
from tests.toys.recorded import recording  # noqa: F401 - a fixture
from tests.toys.sessions import PROMPTS, Session, tiny_model

pytestmark = pytest.mark.usefixtures("recording")


def drafted(paged, num_rounds=4, prompts=PROMPTS):
    """Chains of four tokens of a draft model, round by round."""
    session, found = Session(DraftModel(paged, num_speculative_tokens=4), prompts), []
    for _ in range(num_rounds):
        drafts = session.propose([4] * len(prompts))
        found += [draft.tree.tokens for draft in drafts]
        for index, draft in enumerate(drafts):
            session.settle(index, draft, [1, 2], 7)
    return found


@pytest.mark.parametrize("stop", [MIN_PREFIX - 3, MIN_PREFIX, MIN_PREFIX + 1, 2 * MIN_PREFIX - 1])
@pytest.mark.parametrize("page_size", [1, 16])
def test_a_chain_has_room_for_all_of_its_pages(stop, page_size):
    row = RequestRows(stop - 1, 1, 0, None, None, 0, None, page_size)
    given, ahead = (Inputs([row._replace(start=start)], [0], [start], [1]) for start in (stop - 1, stop))
    for key in chain_keys(given, ahead, count=4):
        assert key.bucket.page == page_size and key.bucket.num_pages * page_size >= stop + 4
    assert key_of(given).bucket.num_pages * page_size < max(MIN_PREFIX, 2 * stop) + 1


def test_tokens_without_embedding_are_stood_in_for():
    """The language model head knows more tokens than can be given, and likes them best."""
    model = tiny_model()
    wide = torch.nn.Linear(16, 31, bias=False).double()
    with torch.no_grad():
        wide.weight[:23], wide.weight[23:] = model.lm_head.weight, 3 * model.lm_head.weight[:8]
    model.lm_head, model.config.vocab_size = wide, 31
    wanted, found = (drafted(PagedModel(model, "draft", check=False, graphs=has)) for has in (False, True))
    assert found == wanted and max(map(max, wanted)) >= 23


@pytest.mark.parametrize("family", ["draft model", "head"])
def test_who_sees_which_keys_is_planned_anew_in_every_pass(family, monkeypatch):
    """And in the graph: what the kernels plan for a pass must not come from another, nor from outside of it."""
    moves, places, attend, advance = [0], set(), attention.ops.tree_attention, StaticRows.advance

    def advanced(rows, positions):
        moves[0] += 1
        return advance(rows, positions)

    def planned(query, keys, values, rows, *given):
        if isinstance(rows, StaticRows):
            now = moves[0], torch._C._len_torch_dispatch_stack()
            assert rows.plans.setdefault("a kind", now) == now
            places.add(now[1])
        return attend(query, keys, values, rows, *given)

    monkeypatch.setattr(StaticRows, "advance", advanced)
    monkeypatch.setattr(attention.ops, "tree_attention", planned)
    if family == "draft model":
        drafted(PagedModel(tiny_model(), "draft", graphs=True), prompts=PROMPTS[:1])
    else:
        session = HeadSession(Eagle3(STEPPING["eagle3"](), 4), tiny_target(), PROMPTS[:1], graphs=True)
        for _ in range(4):
            session.propose([4])
    assert places == {0, 1} and moves[0] == 4, "two eager moves, and two in the record"


def test_other_layers_are_another_graph():
    cache, paged = PagedKVCache(), PagedModel(tiny_model(), feature_layers=[0], graphs=True)
    table = cache.open()
    cache.stage(table, 3)
    chunk = Chunk(table, 0, TokenTree.chain([5, 7, 9]), num_logits=3)
    first = [paged.score(cache, [chunk]).features for _ in range(3)]
    with paged.tapped([1]):
        other = [paged.score(cache, [chunk]).features for _ in range(3)]
    assert torch.allclose(first[2], first[0]) and torch.allclose(other[2], other[0])
    assert not torch.allclose(first[2], other[2]) and paged.graph_report.num_graphs == 2


def test_chains_of_another_length_are_another_graph():
    cache, paged = PagedKVCache(), PagedModel(tiny_model(), graphs=True)
    table = cache.open()
    cache.stage(table, 6)
    chunk = Chunk(table, 0, TokenTree.chain([5, 7]))
    found = {count: [paged.chain(cache, [chunk], count) for _ in range(3)] for count in (2, 4)}
    assert found[2][0] is None and found[4][0] is None
    assert found[4][2][0][:2] == found[2][2][0] and paged.graph_report.num_graphs == 2


def test_a_chain_of_one_token_has_no_rows_ahead():
    cache = PagedKVCache(4)
    cache.stage(table := cache.open(), 4)
    ahead = inputs_ahead(cache, [Chunk(table, 0, TokenTree.chain([5, 7, 9, 2]))], 0)
    assert [request.start for request in ahead.requests] == [4]


def test_models_with_graphs_are_gone_with_their_last_reference():
    """Not with the next collection: graphs hold memory of a GPU."""
    paged = PagedModel(tiny_model(), "draft", graphs=True)
    drafted(paged)
    session = HeadSession(Eagle3(STEPPING["eagle3"](), 4), tiny_target(), PROMPTS[:1], graphs=True)
    for _ in range(3):
        session.propose([4])
    held = session.drafter._head._graphs
    assert paged.graph_report.num_graphs and held.report.num_graphs
    gone = [weakref.ref(each) for each in (paged, paged.graphs, held, session.drafter)]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        del paged, session, held
        assert [each() for each in gone] == [None] * 4
    finally:
        if was_enabled:
            gc.enable()


def test_a_heads_graphs_go_with_the_targets_and_with_its_target():
    drafter = Eagle3(STEPPING["eagle3"](), 4)
    session = HeadSession(drafter, tiny_target(), PROMPTS[:1], graphs=True)
    for _ in range(3):
        session.propose([4])
    report = drafter.graph_report
    assert report.num_graphs == 1 and session.paged.graph_report.num_graphs <= 1, "each counts its own"
    drafter.check(session.paged)
    assert drafter.graph_report == report, "the next text of the same target"
    session.propose([4])
    assert drafter.graph_report.num_replayed == report.num_replayed + 1
    session.paged.close()
    assert drafter.graph_report.num_graphs == 0 and drafter.graph_report.num_captured == 1
    drafter.check(PagedModel(tiny_target(seed=1), graphs=True))
    assert drafter.graph_report.num_captured == 0
    drafter.check(PagedModel(tiny_target()))
    assert drafter.graph_report is None


def test_a_heads_graphs_do_not_outlive_what_it_borrows():
    """Embeddings put in place of others, and another list of the tokens that it knows."""
    network = STEPPING["eagle3"]()
    drafter = Eagle3(network, 4)
    session = HeadSession(drafter, tiny_target(), PROMPTS[:1], graphs=True)
    for change in ("embeddings", "tokens"):
        for _ in range(3):
            session.propose([4])
        assert drafter.graph_report.num_graphs == 1
        if change == "tokens":
            network.d2t[-1] -= 1
        else:
            session.paged.model.set_input_embeddings(tiny_target(seed=1).get_input_embeddings())
        drafter.check(session.paged)
        assert drafter.graph_report.num_captured == 0


def test_heads_have_graphs_where_the_target_has_and_on_its_device():
    target, network = PagedModel(tiny_target(), graphs=True), STEPPING["eagle3"]()
    spec = {"method": "eagle3", "model": network, "num_speculative_tokens": 4}
    assert build_drafter(spec, target).graph_report.num_captured == 0
    assert build_drafter(spec, PagedModel(target.model)).graph_report is None
    target.graphs.device = torch.device("meta")
    assert build_drafter(spec, target).graph_report is None


def test_what_a_head_does_not_know_does_not_excuse_the_rest(monkeypatch):
    """Its graph is compared with its eager pass; logits of -3e4 stand for tokens that it cannot draft."""
    record = graphs.capture.record

    def spoilt(function, memory, device):
        replay, (logits, taps) = record(function, memory, device)
        return (lambda: (replay(), logits.mul_(torch.where(logits > -1e4, 1.5, 1.0)))), (logits, taps)

    monkeypatch.setattr(graphs.capture, "record", spoilt)
    drafter = Eagle3(STEPPING["eagle3"](), 4, draft_sample_method="probabilistic", num_tree_nodes=6)
    with pytest.raises(ValueError, match="expected of a captured forward pass the logits of the eager one"):
        session = HeadSession(drafter, tiny_target(), PROMPTS[:1], graphs=True)
        for _ in range(3):
            session.propose([4])
