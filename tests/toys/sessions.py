"""A run of a drafter without a target, and a draft model small enough to be checked against from scratch."""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from specdec.cache import PagedKVCache
from specdec.noise import PhiloxNoise
from specdec.protocols import RequestView
from specdec.sampling import Sampler

VOCAB = 23
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]


def tiny_model(vocab_size=VOCAB, seed=0, max_positions=256):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_positions,
        initializer_range=0.6,  # rows far from uniform
    )
    return LlamaForCausalLM(config).double().eval()


def rows_after(tokens, model):
    """Logits [n, vocab] of an ordinary forward pass without a cache."""
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0]


def sampling(*processors):
    return Sampler([TemperatureLogitsWarper(0.7), RepetitionPenaltyLogitsProcessor(1.3), *processors], do_sample=True)


class Session:
    """What the engine does for a drafter, without a target: tokens, tables, and commits of any path."""

    def __init__(self, drafter, prompts=PROMPTS, sampler=None, page_size=4, max_pages=None):
        self.drafter, self.sampler = drafter, sampler or Sampler()
        self.cache = PagedKVCache(page_size, max_pages)
        self.tokens = [list(prompt) for prompt in prompts]
        self.noises = [PhiloxNoise(seed) for seed in range(len(prompts))]
        self.tables = [self.opened(tokens) for tokens in self.tokens]

    def opened(self, tokens):
        table = self.cache.open(tokens)
        missing = len(tokens) - 1 - table.length
        if missing:
            self.cache.stage(table, missing)
            self.cache.commit(table, list(range(1, missing)), tokens[table.length : -1])
        return table

    def views(self, indices):
        return [RequestView(i, self.tokens[i], 1, self.tables[i], self.sampler, self.cache, row=i) for i in indices]

    def propose(self, budgets, indices=None):
        indices = range(len(self.tokens)) if indices is None else indices
        return self.drafter.propose(self.views(indices), budgets, [self.noises[i] for i in indices])

    def settle(self, index, draft, path, next_token):
        """Accepts `path` of the draft, and then this token."""
        self.cache.stage(self.tables[index], len(draft))
        kept = [self.tokens[index][-1], *draft.tree.tokens_at(path)]
        self.cache.commit(self.tables[index], path, kept)
        self.tokens[index] += [*kept[1:], next_token]

    def wander(self, seed, num_rounds):
        """Ragged budgets with zeros, any accepted path, skipped rounds, preemption, shared and copied pages."""
        chance = random.Random(seed)
        for _ in range(num_rounds):
            present = [index for index in range(3) if chance.random() < 0.8]  # the others are drafted for later
            budgets = [chance.choice([0, 1, 2, 4, 9]) for _ in present]
            for index, budget, draft in zip(present, budgets, self.propose(budgets, present), strict=True):
                assert draft.tree.tokens[0] == self.tokens[index][-1]
                assert max(draft.tree.depths) <= min(budget, 4)
                path = draft.tree.path_to(chance.randrange(len(draft)))
                self.settle(index, draft, path, chance.randrange(VOCAB))
            if chance.random() < 0.3:
                self.preempt(chance.randrange(3))
            self.cache.check()

    def preempt(self, index):
        self.cache.close(self.tables[index])
        self.drafter.close([index])
        self.tables[index] = self.opened(self.tokens[index])
