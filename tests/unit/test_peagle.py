"""P-EAGLE: bugs that the comparison with a computation from scratch has to notice."""

import copy

import pytest

from specdec.draft_models import peagle as peagle_module
from specdec.draft_models.eagle import Eagle
from specdec.draft_models.marginals import Marginals
from specdec.draft_models.peagle import MaskedRows, PEagle
from specdec.features import FeatureRows
from tests.toys.heads import HeadSession, tiny_target
from tests.toys.parallel_heads import peagle, peagle_row
from tests.toys.recomputed import compare_rows
from tests.toys.sessions import PROMPTS

TARGET = tiny_target()
TWIN = copy.deepcopy(TARGET)  # transformers leaves hooks on a model that was asked for hidden states


def test_rows_of_masks_that_stay_are_noticed(monkeypatch):
    """And row 0 in view, the next row's features, and drafts that are taken for what the text says."""
    compare_rows(monkeypatch, Marginals, lambda head, *text: peagle_row(head.network, TWIN, *text))
    rows, masked, proposals = FeatureRows.rows, MaskedRows.rows_after, Eagle._proposals

    def kept(self, views, budgets, noises):
        drafts = proposals(self, views, budgets, noises)
        for view in views:
            view.table.filled[self.pool] = view.table.length + 4
        return drafts

    def unmasked(self, cache, chunks):
        with monkeypatch.context() as patch:
            patch.setattr(self.network, "mask_token_id", chunks[0].tree.tokens[-1])
            return masked(self, cache, chunks)

    planted = {
        "rows that stay": (Eagle, "_proposals", kept),
        "the next row's features": (FeatureRows, "rows", lambda *args: rows(*args).roll(1, 0)),
        "row 0 in view": (peagle_module, "behind_row_0", lambda given: given),
        "tokens in the place of masks": (MaskedRows, "rows_after", unmasked),
    }

    def run():
        session = HeadSession(PEagle(peagle(), 4), TARGET, PROMPTS[:1])
        (draft,) = session.propose([4])
        session.settle(0, draft, [1, 2], 7)
        session.propose([4])

    for owner, name, bug in planted.values():
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setattr(owner, name, bug)
            run()
    run()
