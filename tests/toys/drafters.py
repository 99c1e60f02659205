"""Drafters that are good, bad or broken on purpose. All are pure functions of the views and of a fixed seed."""

import random
from dataclasses import dataclass

import torch

from specdec.protocols import DrafterNeeds
from specdec.rules import without
from specdec.tree import TokenTree
from specdec.types import Draft


class Toy:
    """What all toys share: no state, no needs; a subclass says what to draft for one view."""

    name = "toy"
    needs = DrafterNeeds()

    def close(self, request_ids):
        pass

    def propose(self, views, budgets, noises):
        drafts = zip(views, budgets, noises, strict=True)
        return [self.draft(*each) if each[1] > 0 else Draft.empty(each[0].tokens[-1], self.name) for each in drafts]

    def draft(self, view, budget, noise):
        raise NotImplementedError


def keyed(seed, view):
    """A generator that depends on the seed, the request and the number of committed tokens."""
    return random.Random(f"{seed} {view.request_id} {len(view.tokens)}")


class Empty(Toy):
    """Never proposes anything."""

    name = "empty"

    def draft(self, view, budget, noise):
        return Draft.empty(view.tokens[-1], self.name)


@dataclass
class Oracle(Toy):
    """Knows each request's whole text; a drafted token is right with probability `acceptance`, else another one."""

    texts: object  # request id -> prompt and continuation
    acceptance: float = 1.0
    vocab_size: int = 512
    num_speculative_tokens: int = 5
    seed: int = 0
    name = "oracle"

    def draft(self, view, budget, noise):
        known = list(self.texts[view.request_id])
        done, depth = len(view.tokens), min(budget, self.num_speculative_tokens)
        tokens = [view.tokens[-1]]
        for place, token in enumerate(known[done : done + depth], start=done):
            chance = random.Random(f"{self.seed} {view.request_id} {place}")
            is_right = chance.random() < self.acceptance
            tokens.append(token if is_right else (token + chance.randrange(1, self.vocab_size)) % self.vocab_size)
        return Draft.chosen(TokenTree.chain(tokens), self.name)


def always_right(texts, num_speculative_tokens=5):
    return Oracle(texts, 1.0, num_speculative_tokens=num_speculative_tokens)


def always_wrong(texts, vocab_size, num_speculative_tokens=5):
    return Oracle(texts, 0.0, vocab_size, num_speculative_tokens)


@dataclass
class EosInside(Toy):
    """The known text, but with end-of-sequence as drafted token number `offset` (0 is the first), and on after it."""

    texts: object
    eos: int
    offset: int = 1
    num_speculative_tokens: int = 5
    name = "eos_inside"

    def draft(self, view, budget, noise):
        done, depth = len(view.tokens), min(budget, self.num_speculative_tokens)
        tokens = list(self.texts[view.request_id][done : done + depth])
        tokens[self.offset : self.offset + 1] = [self.eos]
        return Draft.chosen(TokenTree.chain([view.tokens[-1], *tokens[:depth]]), self.name)


@dataclass
class RandomTrees(Toy):
    """Random trees of chosen nodes, some siblings with the same token; with `texts`, the truth is often among them."""

    vocab_size: int
    num_nodes: int = 12
    depth: int = 5
    seed: int = 0
    texts: object = None
    truth: float = 0.5  # how often a node is the known token of its place
    name = "random_trees"
    needs = DrafterNeeds(tree=True)

    def draft(self, view, budget, noise):
        chance, done = keyed(self.seed, view), len(view.tokens)
        known = list(self.texts[view.request_id]) if self.texts is not None else []
        tokens, parents, depths = [view.tokens[-1]], [-1], [0]
        for _ in range(chance.randrange(self.num_nodes + 1)):
            parent = chance.randrange(len(tokens))
            if depths[parent] == min(budget, self.depth):
                continue
            place = done + depths[parent]
            siblings = [tokens[node] for node in range(1, len(tokens)) if parents[node] == parent]
            if siblings and chance.random() < 0.25:
                tokens.append(chance.choice(siblings))
            elif place < len(known) and chance.random() < self.truth:
                tokens.append(known[place])
            else:
                tokens.append(chance.randrange(self.vocab_size))
            parents.append(parent)
            depths.append(depths[parent] + 1)
        return Draft.chosen(TokenTree(tokens, parents), self.name)


@dataclass
class RandomDraws(Toy):
    """Honest samples from random rows: `widths[d]` children, drawn without replacement, below each node of depth d."""

    vocab_size: int
    widths: tuple = (1, 1, 1)
    seed: int = 0
    name = "random_draws"

    def __post_init__(self):
        self.needs = DrafterNeeds(sampled=True, tree=max(self.widths) > 1)

    def row(self, path):
        """A peaked distribution that is a function of the path; a quarter of the tokens have no probability."""
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed} {path}").getrandbits(32))
        scores = 2 * torch.randn(self.vocab_size, generator=generator)
        scores[torch.rand(self.vocab_size, generator=generator) < 0.25] = -torch.inf
        scores[path[-1]] = 0.0
        return scores.softmax(-1)

    def draft(self, view, budget, noise):
        paths, parents = [tuple(view.tokens)], [-1]
        probs, level = [], [0]
        for width in self.widths[:budget]:
            before = len(paths)
            for parent in level:
                row = rest = self.row(paths[parent])
                probs.append(row)
                for draw in range(width):
                    if not rest.any():
                        break
                    token = noise.draft_token(rest, len(view.tokens), parent, draw)
                    paths.append((*paths[parent], token))
                    parents.append(parent)
                    rest = without(rest, token)
            level = range(before, len(paths))
        probs += [torch.zeros(self.vocab_size)] * (len(paths) - len(probs))
        sampled = [False] + [True] * (len(paths) - 1)
        return Draft(TokenTree([path[-1] for path in paths], parents), sampled, torch.stack(probs), source=self.name)


LIES = ("root", "depth", "token", "kind", "sampled")


@dataclass
class Liar(Toy):
    """Breaks the contract in the named way, which the engine has to notice rather than to emit wrong text."""

    lie: str
    vocab_size: int = 512
    name = "liar"

    def draft(self, view, budget, noise):
        pending = view.tokens[-1]
        tokens, parents = [pending, 1, 2], [-1, 0, 1]
        if self.lie == "root":
            tokens[0] = (pending + 1) % self.vocab_size
        elif self.lie == "depth":
            tokens, parents = [pending] * (budget + 2), list(range(-1, budget + 1))
        elif self.lie == "kind":
            tokens[1] = torch.tensor(1)
        elif self.lie == "token":
            tokens[1] = self.vocab_size
        tree = TokenTree(tokens, parents)
        sampled = [False, *[self.lie == "sampled"] * (len(tokens) - 1)]
        return Draft(tree, sampled, source=self.name)  # "sampled": marked as drawn, but from nothing
