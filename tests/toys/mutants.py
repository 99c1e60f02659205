"""Rules, drafters and noise with one thing wrong each, for the tests that must catch them (algorithms.md 7.3)."""

from math import prod

import torch

from specdec.rules import without
from specdec.types import TargetRows, Verdict
from specdec.verifiers import rejection
from specdec.verifiers.block import Block
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys.tables import EnumeratingNoise, TreeDrafter, shared_uniform

# Rules with one thing changed.


class BonusFromThePreviousRow:
    """Every leaf says what its parent says."""

    def __init__(self, rule):
        self.rule = rule

    def verify(self, draft, rows, noise):
        last = len(draft) - 1  # the leaf of a chain
        scores = rows.scores[[*range(last), last - 1]]
        return self.rule.verify(draft, TargetRows(scores, rows.start, rows.depths, rows.is_greedy), noise)


class ZeroOnlyTheRejected(rejection._Tests):
    def run(self, node, drawn):
        accepted, rest = super().run(node, drawn)
        if accepted is None:
            for child in drawn:
                rest = without(self.target[node], self.draft.tree.tokens[child])
        return accepted, rest


class StopAtTheFirstFailure(Block):
    def _deepest(self, passes, noise, start):
        for node in range(1, len(passes)):
            if not noise.accept(passes[node], start, node - 1, 0):
                return node - 1
        return len(passes) - 1


class LastTestUncapped(Block):
    """The last test takes the plain product of the ratios instead of the weight (algorithms.md 1.9)."""

    def _weights(self, ratios):
        self.product = min(1.0, prod(ratios))
        return super()._weights(ratios)

    def _tests(self, weights, masses):
        return [*super()._tests(weights, masses)[:-1], self.product]


class ResidualWithoutWeight(Block):
    def verify(self, draft, rows, noise):
        verdict = super().verify(draft, rows, Accepting(noise))
        node = verdict.num_accepted
        rest = rows.probs[node]
        if node < len(draft) - 1:
            rest = (rest - draft.probs[node]).clamp_min(0)
            rest = rest if rest.sum() > 0 else rows.probs[node]
        return Verdict(verdict.path, noise.residual_token(rest, rows.start + node))


class Accepting:
    """Noise for the tests alone."""

    def __init__(self, noise):
        self.accept = noise.accept

    def residual_token(self, probs, start):
        return 0


class Redraw(SampleAndMatch):
    """On a mismatch a fresh token is drawn instead of emitting the one that did not match."""

    def verify(self, draft, rows, noise):
        verdict = super().verify(draft, rows, noise)
        last = verdict.path[-1] if verdict.path else 0
        if not draft.tree.children()[last]:
            return verdict
        return Verdict(verdict.path, noise.residual_token(rows.probs[last], rows.start + rows.depths[last]))


# Drafters that are wrong about how their tokens came about.


class KeepsAll(TreeDrafter):
    """The honest counterpart of the drafters below."""

    def children(self, context, start, node, depth, noise):
        found, row = super().children(context, start, node, depth, noise)
        return self.change(found, row)

    def change(self, found, row):
        return found, row


class SortedByQ(KeepsAll):
    def change(self, found, row):
        return sorted(found, key=lambda child: -float(row[child[0]])), row


class PrunedByOwnQ(KeepsAll):
    def change(self, found, row):
        best = sorted(found, key=lambda child: -float(row[child[0]]))[:1]
        return best, row


class LowConfidenceDropped(KeepsAll):
    def change(self, found, row):
        return [child for child in found if row[child[0]] > 0.4], row


class LikeliestClaimedAsSampled(KeepsAll):
    def change(self, found, row):
        row = row if not row.isnan().any() else self.full
        return [(token, True) for token, _ in found if row[token] > 0], row

    def children(self, context, start, node, depth, noise):
        self.full = self.table.row(context)
        return super().children(context, start, node, depth, noise)


class WrongTemperature(KeepsAll):
    """Reports another row than the token was drawn from."""

    def change(self, found, row):
        return found, row.sqrt() / row.sqrt().sum()


class PartOfTheVocabulary(KeepsAll):
    """Draws from q without token 0, as a drafter with another tokenizer does (algorithms.md 4.3, TLI)."""

    def children(self, context, start, node, depth, noise):
        row = self.table.row(context)
        if not row[1:].sum() > 0:
            return [], row
        row = without(row, 0)
        return [(noise.draft_token(row, start, node, 0), True)], self.reported(row, self.table.row(context))

    def reported(self, row, full):
        return row


class PartNotRenormalised(PartOfTheVocabulary):
    def reported(self, row, full):
        return torch.cat((torch.zeros(1), full[1:]))


class IndependentDraws(KeepsAll):
    """Two draws from the same row; a repeated token is merged. Without replacement in effect, and honest as such."""

    def children(self, context, start, node, depth, noise):
        row = self.table.row(context)
        drawn = dict.fromkeys(noise.draft_token(row, start, node, draw) for draw in range(2))
        return [(token, True) for token in drawn], row


# Noise used twice.


class ReusingNoise(EnumeratingNoise):
    """Remembers the uniform of each draft draw by its position."""

    def __init__(self, plan=()):
        super().__init__(plan)
        self.drawn = {}

    def draft_token(self, probs, start, node, draw):
        token = super().draft_token(probs, start, node, draw)
        self.drawn[start + node] = (probs, token)
        return token


class ResidualReusesDraft(ReusingNoise):
    def residual_token(self, probs, start):
        if start not in self.drawn:
            return super().residual_token(probs, start)
        return self.choose(shared_uniform(*self.drawn[start], probs / probs.sum()), ("residual", start))


class NextRoundReusesDraft(ReusingNoise):
    """Draft draws keyed by position: a position that is drafted again gets the same uniform again."""

    def draft_token(self, probs, start, node, draw):
        if start + node not in self.drawn:
            return super().draft_token(probs, start, node, draw)
        again = shared_uniform(*self.drawn[start + node], probs / probs.sum())
        return self.choose(again, ("draft", start, node, draw))
