"""Captured passes of heads: what they draft is what eager ones draft; a graph is a record of ops, see `recorded`."""

import random

import pytest

from specdec.draft_models.dflash import DFlash
from specdec.draft_models.eagle import Eagle
from specdec.draft_models.eagle3 import Eagle3
from specdec.draft_models.medusa import Medusa
from tests.toys.heads import ONE_PASS, STEPPING, HeadSession, tiny_target
from tests.toys.recorded import recording  # noqa: F401 - a fixture
from tests.toys.sessions import PROMPTS, VOCAB, sampling

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


def histories(sessions, seed, num_rounds=16):
    """What the sessions draft, round by round, in one history: requests that come and go, ragged budgets, any path."""
    chance = random.Random(seed)
    for _ in range(num_rounds):
        present = sorted(chance.sample(range(3), chance.choice([1, 3, 3])))
        budgets = [chance.choice([4, 4, 4, 2, 0])] * len(present)
        if chance.random() < 0.3:
            budgets[0] = 1
        drafts = [session.propose(budgets, present) for session in sessions]
        yield drafts
        for place, index in enumerate(present):
            path = drafts[0][place].tree.path_to(chance.choice([0, chance.randrange(len(drafts[0][place]))]))
            token = chance.randrange(VOCAB)
            for session, drafted in zip(sessions, drafts, strict=True):
                session.settle(index, drafted[place], path, token)
        if chance.random() < 0.2:
            index = chance.randrange(3)
            for session in sessions:
                session.preempt(index)


@pytest.mark.parametrize("page_size", [16, 5])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_captured_and_eager_heads_draft_alike(case, page_size):
    kind, build, options = CASES[case]
    network = build()
    given = {"sampler": sampling() if "draft_sample_method" in options else None, "page_size": page_size}
    sessions = [HeadSession(kind(network, 4, **options), TARGET, graphs=graphs, **given) for graphs in (False, True)]
    for wanted, found in histories(sessions, case):
        assert [draft.tree for draft in found] == [draft.tree for draft in wanted]
    eager, captured = (session.drafter._head.graph_report for session in sessions)
    assert eager is None and captured.num_replayed > 3
    for session in sessions:
        session.cache.check()
