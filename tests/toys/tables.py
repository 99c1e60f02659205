"""Models that are tables, and noise that visits every outcome: the exact suite of algorithms.md 7.1.

A table gives every context its own distribution, and `outcomes` runs a function once for every way its draws can fall.
So the law of what a production rule emits is a sum of a few hundred products, compared with the target's to 1e-12.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from specdec.rules import without
from specdec.tree import TokenTree
from specdec.types import Draft, TargetRows

Law = dict[tuple[int, ...], float]


class Table:
    """A next-token distribution for every context: random small integers, zeros among them, normalised.

    Args:
        part: 0 or 1: only one half of the vocabulary, another half in each context; two tables with the same seed and
            different parts never agree on a token.
        is_point: all mass on one token.
    """

    def __init__(self, vocab: int, seed: int, part: int | None = None, is_point: bool = False) -> None:
        self.vocab, self.seed, self.part, self.is_point = vocab, seed, part, is_point
        self._rows: dict[tuple[int, ...], Tensor] = {}

    def row(self, context: Sequence[int]) -> Tensor:  # [vocab] float64
        key = tuple(context)
        if key not in self._rows:
            rng = random.Random(f"{self.seed}/{key}")
            tokens = rng.sample(range(self.vocab), self.vocab)
            half = (self.vocab + 1) // 2
            allowed = tokens if self.part is None else (tokens[:half], tokens[half:])[self.part]
            weights = torch.zeros(self.vocab, dtype=torch.float64)
            weights[allowed[0]] = rng.randint(1, 5)
            for token in allowed[1:]:
                weights[token] = 0 if self.is_point else rng.randint(0, 5)
            self._rows[key] = weights / weights.sum()
        return self._rows[key]


def pairs(vocab: int, seed: int) -> dict[str, tuple[Table, Table]]:
    """Target and draft tables that differ in every way that has broken a rule somewhere."""
    target, draft = Table(vocab, seed), Table(vocab, 1000 + seed)
    return {
        "random": (target, draft),
        "equal": (target, target),
        "disjoint": (Table(vocab, seed, part=0), Table(vocab, seed, part=1)),
        "certain target": (Table(vocab, seed, is_point=True), draft),
        "certain draft": (target, Table(vocab, 1000 + seed, is_point=True)),
    }


class TreeDrafter:
    """Drafts trees: below each node of depth d `plan[d]` = (sampled, chosen) children, as far as q has the mass.

    Chosen children are the likeliest tokens of q, and sampled ones are drawn from the rest. `flip` puts chosen children
    first. Rows that nothing was sampled from are NaN: no rule may read them.
    """

    def __init__(self, table: Table, plan: Sequence[tuple[int, int]], flip: bool = False) -> None:
        self.table, self.plan, self.flip = table, tuple(plan), flip

    def propose(self, tokens: Sequence[int], noise, budget: int = 99) -> Draft:
        drafted, parents, sampled, depths, rows = [tokens[-1]], [-1], [False], [0], []
        contexts = [tuple(tokens)]
        for node in itertools.count():
            if node == len(drafted):
                break
            row = torch.full((self.table.vocab,), torch.nan, dtype=torch.float64)
            if depths[node] < min(len(self.plan), budget):
                children, row = self.children(contexts[node], len(tokens), node, depths[node], noise)
                for token, was_sampled in children:
                    drafted.append(token)
                    parents.append(node)
                    sampled.append(was_sampled)
                    depths.append(depths[node] + 1)
                    contexts.append((*contexts[node], token))
            rows.append(row)
        probs = torch.stack(rows) if any(sampled) else None
        return Draft(TokenTree(drafted, parents), sampled, probs)

    def children(self, context, start: int, node: int, depth: int, noise) -> tuple[list[tuple[int, bool]], Tensor]:
        """The children of a node, in draw order, and the row that the sampled ones were drawn from."""
        num_sampled, num_chosen = self.plan[depth]
        row = self.table.row(context)
        chosen = row.argsort(descending=True, stable=True)[:num_chosen].tolist()
        if num_chosen and num_sampled:
            row = row.clone()
            row[chosen] = 0
            row = row / row.sum() if row.sum() > 0 else row
        drawn, rest = [], row
        for draw in range(num_sampled):
            if not rest.sum() > 0:
                break
            drawn.append(noise.draft_token(rest, start, node, draw))
            rest = without(rest, drawn[-1])
        found = [(token, True) for token in drawn], [(token, False) for token in chosen]
        return [*found[self.flip], *found[not self.flip]], row if drawn else row * torch.nan


class EnumeratingNoise:
    """Noise whose draws are the branches of a tree: replays `plan`, then always takes the first branch that is open.

    A key used twice in one run is an error: that is how reused randomness shows.
    """

    def __init__(self, plan: Sequence[int] = ()) -> None:
        self.plan, self.weight = plan, 1.0
        self.trail: list[tuple[int, int]] = []  # (branch taken, number of branches) of every draw
        self._used: set[tuple] = set()

    def choose(self, weights: Sequence[float], key: tuple) -> int:
        assert key not in self._used, f"the noise of {key} is used twice"
        self._used.add(key)
        total = sum(weights)
        live = [index for index, weight in enumerate(weights) if weight > 0]
        branch = self.plan[len(self.trail)] if len(self.trail) < len(self.plan) else 0
        self.trail.append((branch, len(live)))
        self.weight *= weights[live[branch]] / total
        return live[branch]

    def target_tokens(self, scores: Tensor, positions: Sequence[int]) -> Sequence[int]:
        return LazyTokens(lambda row: self.choose(scores[row].softmax(-1).tolist(), ("target", positions[row])))

    def coupled_tokens(self, scores: Tensor, position: int, count: int) -> list[int]:
        raise NotImplementedError("enumerated by tests.exact.test_rules.SharedNoise")

    def draft_token(self, probs: Tensor, start: int, node: int, draw: int) -> int:
        return self.choose(probs.tolist(), ("draft", start, node, draw))

    def accept(self, ratio: float, start: int, node: int, draw: int) -> bool:
        chance = min(1.0, max(0.0, ratio))
        return self.choose([chance, 1 - chance], ("accept", start, node, draw)) == 0

    def residual_token(self, probs: Tensor, start: int) -> int:
        return self.choose(probs.tolist(), ("residual", start))


class LazyTokens(Sequence):
    """Tokens drawn when first read, so that only the nodes a rule visits branch."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self._draw = draw
        self._drawn: dict[int, int] = {}

    def __getitem__(self, row):
        if row not in self._drawn:
            self._drawn[row] = self._draw(row)
        return self._drawn[row]

    def __len__(self) -> int:
        raise NotImplementedError("a rule has no use for the number of rows")


def outcomes(run: Callable, make_noise: Callable = EnumeratingNoise) -> Iterator[tuple]:
    """(result, probability) of `run(noise)` for every way the noise can fall, depth first."""
    plan: list[int] = []
    while True:
        noise = make_noise(plan)
        result = run(noise)
        yield result, noise.weight
        trail = noise.trail
        while trail and trail[-1][0] == trail[-1][1] - 1:
            trail.pop()
        if not trail:
            return
        plan = [branch for branch, _ in trail]
        plan[-1] += 1


def score(target: Table, tokens: Sequence[int], draft: Draft, is_greedy: bool = False) -> TargetRows:
    """The target's rows for a draft that continues `tokens`."""
    drafted = draft.tree.tokens
    paths = [[drafted[node] for node in draft.tree.path_to(leaf)] for leaf in range(len(draft))]
    probs = torch.stack([target.row((*tokens, *path)) for path in paths])
    return TargetRows(probs.log(), start=len(tokens), depths=draft.tree.depths, is_greedy=is_greedy)


def emitted(draft: Draft, verdict) -> tuple[int, ...]:
    return (*draft.tree.tokens_at(verdict.path), verdict.next_token)


def plain_law(target: Table, tokens: tuple[int, ...], length: int) -> Law:
    """The law of the next `length` tokens under plain sampling."""
    if length == 0:
        return {(): 1.0}
    law: Law = {}
    for token, chance in enumerate(target.row(tokens).tolist()):
        if chance > 0:
            for rest, weight in plain_law(target, (*tokens, token), length - 1).items():
                law[token, *rest] = chance * weight
    return law


def round_law(target: Table, drafter, rule, tokens: tuple[int, ...], make_noise=EnumeratingNoise) -> tuple[Law, float]:
    """The law of what one round emits, and the expected number of accepted tokens.

    Drafting and deciding are enumerated one inside the other, so that each draft is scored once.
    """
    law: Law = {}
    accepted = 0.0
    for draft, drawn in outcomes(lambda noise: drafter.propose(tokens, noise)):
        rows = score(target, tokens, draft)
        for verdict, decided in outcomes(lambda noise, d=draft, r=rows: rule.verify(d, r, noise), make_noise):
            run = emitted(draft, verdict)
            law[run] = law.get(run, 0.0) + drawn * decided
            accepted += drawn * decided * verdict.num_accepted
    return law, accepted


def deviation(target: Table, law: Law, tokens: tuple[int, ...], length: int) -> float:
    """The total variation between a law of runs, each continued by plain sampling to `length`, and plain sampling."""
    total = plain_law(target, tokens, length)
    rest = dict.fromkeys(total, 0.0)
    for run, weight in law.items():
        for tail, chance in plain_law(target, (*tokens, *run), length - len(run)).items():
            rest[*run, *tail] = rest.get((*run, *tail), 0.0) + weight * chance
    return sum(abs(weight - total.get(run, 0.0)) for run, weight in rest.items()) / 2


def generate(target: Table, drafter, rule, tokens: tuple[int, ...], length: int, noise) -> tuple[int, ...]:
    """The engine's loop: rounds of propose, score, verify until `length` tokens are emitted."""
    text = list(tokens)
    stop = len(tokens) + length
    while len(text) < stop:
        draft = drafter.propose(text, noise, budget=stop - len(text) - 1)
        text += emitted(draft, rule.verify(draft, score(target, text, draft), noise))
    assert len(text) == stop, "a budget leaves room for the token after the draft"
    return tuple(text[len(tokens) :])


def shared_uniform(first: Tensor, token: int, second: Tensor) -> list[float]:  # [vocab], [vocab] -> [vocab]
    """How a draw from `second` falls with the uniform that made `token` of `first`: the overlaps of their stretches."""
    high = float(first.cumsum(0)[token])
    low = high - float(first[token])
    tops = second.cumsum(0).tolist()
    return [max(0.0, min(high, top) - max(low, bottom)) for bottom, top in zip([0.0, *tops], tops, strict=False)]
