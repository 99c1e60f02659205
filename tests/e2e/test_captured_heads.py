"""Captured passes of heads: what they draft is what eager ones draft; a graph is a record of ops, see `recorded`."""

import random

import pytest
import torch

from specdec import graphs
from specdec.buckets import Forward
from specdec.cache import PagedKVCache
from specdec.draft_models.dflash import DFlash
from specdec.draft_models.eagle import Eagle
from specdec.draft_models.eagle3 import Eagle3, Eagle3Network
from specdec.draft_models.head_runner import HeadRunner
from specdec.draft_models.medusa import Medusa
from specdec.engine import Engine, EngineOptions
from specdec.graphs import Graphs
from specdec.methods import build_drafter
from specdec.noise import PhiloxNoise
from specdec.request import Request
from specdec.sampling import Sampler
from specdec.stopping import Stopping
from specdec.target import PagedModel
from specdec.verifiers.greedy import Greedy
from tests.e2e.test_heads import ALWAYS_RIGHT, clockwork
from tests.toys.heads import ONE_PASS, STEPPING, HeadSession, head_config, randomised, tiny_target
from tests.toys.recorded import recording  # noqa: F401 - a fixture
from tests.toys.sessions import VOCAB, sampling
from tests.toys.wrong_heads import wrong_heads

pytestmark = pytest.mark.usefixtures("recording")

TARGET = tiny_target()
DRAWN = {"draft_sample_method": "probabilistic"}
TREE = {"num_tree_nodes": 7, "tree_width": 3}
EAGLES = ["eagle", "eagle3", "eagle3, two layers of Qwen3", "eagle3, norms everywhere else"]
BLOCKS = ["block", "block that drafts from the pending token, too", "block with a gated Markov head"]
BLOCKS += ["block with a causal and a windowed layer"]
CASES = [
    *[(Eagle if name == "eagle" else Eagle3, STEPPING[name], {}) for name in EAGLES],
    *[(Eagle3, STEPPING["eagle3"], options) for options in (TREE, DRAWN, {**DRAWN, **TREE})],
    *[(DFlash, ONE_PASS[name], {}) for name in BLOCKS],
    *[(DFlash, ONE_PASS["block"], options) for options in (TREE, DRAWN)],
    *[(Medusa, ONE_PASS["medusa"], options) for options in ({}, TREE, DRAWN)],
    (Medusa, ONE_PASS["medusa, shared output, two layers"], {}),
]


def histories(sessions, seed, num_rounds=18):
    """What the sessions draft, round by round, in one history: requests that come and go, ragged budgets, any path."""
    chance = random.Random(seed)
    for _ in range(num_rounds):
        present = chance.choice([[1], [0, 1, 2], [0, 1, 2]])
        budgets = [chance.choice([4, 4, 4, 4, 2, 0]) for _ in present] if chance.random() < 0.3 else [4] * len(present)
        drafts = [session.propose(budgets, present) for session in sessions]
        yield drafts
        accepted = chance.choice([0.0, 0.0, 0.5, 1.0])
        for place, index in enumerate(present):
            draft = drafts[0][place]
            path = draft.tree.path_to(chance.randrange(len(draft)) if chance.random() < accepted else 0)
            token = chance.randrange(VOCAB)
            for session, drafted in zip(sessions, drafts, strict=True):
                session.settle(index, drafted[place], path, token)
        if chance.random() < 0.1:
            index = chance.randrange(3)
            for session in sessions:
                session.preempt(index)


def pair(build, page_size=16, **options):
    """A session with eager passes, and one with captured ones."""
    given = {"sampler": sampling() if "draft_sample_method" in options else None, "page_size": page_size}
    return [HeadSession(build(**options), TARGET, graphs=has_graphs, **given) for has_graphs in (False, True)]


def require_alike(sessions, seed=1, **sizes):
    for wanted, found in histories(sessions, seed, **sizes):
        assert [draft.tree for draft in found] == [draft.tree for draft in wanted]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_captured_and_eager_heads_draft_alike(case):
    kind, build, options = CASES[case]
    network = build()
    sessions = pair(lambda **options: kind(network, 4, **options), (16, 5)[case % 2], **options)
    require_alike(sessions, case)
    eager, captured = (session.drafter.graph_report for session in sessions)
    assert eager is None and captured.num_replayed > 3
    for session in sessions:
        session.cache.check()


def test_a_chain_of_a_head_is_one_graph():
    session = pair(lambda: Eagle3(STEPPING["eagle3"](), 4))[1]
    for _ in range(6):
        session.propose([4, 0, 4])
    report = session.drafter.graph_report
    assert (report.num_captured, report.num_replayed) == (1, 4)  # the first one has the prompts before it


def engine_drafts(model, drafter, has_graphs):
    """What is drafted for requests of which two run at a time; all pages are free in the end."""
    target = PagedModel(model, graphs=has_graphs)
    drafter, drafts = build_drafter(drafter, target), []
    propose = drafter.propose

    def watched(*given):
        drafts.append(propose(*given))
        return drafts[-1]

    drafter.propose = watched
    vocab_size, rng = model.config.vocab_size, random.Random(2)
    requests = []
    for length, count in ((9, 7), (2, 30), (14, 12), (5, 1), (21, 16)):
        prompt = [rng.randrange(1, vocab_size) for _ in range(length)]
        requests.append(Request(prompt, Sampler(), Stopping(max_length=length + count), PhiloxNoise(length)))
    cache = target.cache or PagedKVCache()
    for _ in Engine(target, drafter, Greedy(), cache, EngineOptions(max_batch_size=2)).rounds(requests):
        pass
    assert cache.num_free_pages == cache.num_pages
    return [draft.tree for batch in drafts for draft in batch], drafter.graph_report


@pytest.mark.parametrize("name", [name for name in ALWAYS_RIGHT if "coupled" not in name])
def test_requests_that_end_and_join_with_all_accepted(name):
    (wanted, _), (found, report) = (
        engine_drafts(clockwork(), ALWAYS_RIGHT[name](), has_graphs) for has_graphs in (False, True)
    )
    assert found == wanted and max(map(len, wanted)) > 4 and report.num_replayed > 3


def test_requests_that_end_and_join_with_next_to_nothing_accepted():
    model = tiny_target(dtype=torch.float32)
    pairs = zip(wrong_heads(model, VOCAB), wrong_heads(model, VOCAB), strict=True)
    for (name, eager), (_, captured) in pairs:
        (wanted, _), (found, report) = (
            engine_drafts(model, drafter, has_graphs) for drafter, has_graphs in ((eager, False), (captured, True))
        )
        assert found == wanted and report.num_replayed > 5, name


def stale(original):
    """States of the pass before."""

    def load(self, given, spare):
        original(self, given._replace(states=None), spare)

    return load


def never_bound(self, cache):
    if self._graphs is not None and self._graphs._place is None:
        self._graphs.bind(cache.pool(self.pool_name), 0)
    return self._graphs


def not_handed_on(original):
    """Every pass of a chain reads the states of the second one."""

    def chained(runs, start, step, count, last_id):
        kept = []

        def behind(packed):
            kept[:] = kept or [packed.states.clone()]
            return runs[1](packed._replace(states=kept[0]))

        return original((runs[0], behind), start, step, count, last_id)

    return chained


def run_by_shape(original):
    """Features are taken for states, or states for features."""
    return lambda self, run, given, kind: original(self, run, given, "any")


MUTANTS = {
    "stale states": ((Forward, "load", stale(Forward.load)), {}),
    "states not handed on": ((graphs, "_chained", not_handed_on(graphs._chained)), {}),
    "passes not told apart": ((Graphs, "run", run_by_shape(Graphs.run)), DRAWN),
    "weights or storage not bound": ((HeadRunner, "_graphs_over", never_bound), {}),
}


@pytest.mark.parametrize("name", [None, *MUTANTS])
def test_what_must_not_go_wrong_is_noticed(name, monkeypatch):
    """None: nothing is wrong."""
    if name is not None:
        patch, options = MUTANTS[name]
        monkeypatch.setattr(*patch)
        with pytest.raises((AssertionError, IndexError)):
            the_whole_story(options)
    else:
        for options in ({}, DRAWN):
            the_whole_story(options)


def the_whole_story(options):
    """A history in which weights change places, and then storage does."""
    network = randomised(Eagle3Network(head_config(), (1,)))  # its features are as wide as its states
    sessions = pair(lambda **options: Eagle3(network, 4, **options), **options)
    require_alike(sessions, num_rounds=8)
    network.lm_head.weight.data = -network.lm_head.weight.data
    require_alike(sessions, num_rounds=3)
    for session in sessions:
        session.cache.stage(table := session.cache.open(), 4000)
        session.cache.close(table)
    require_alike(sessions, num_rounds=8)
