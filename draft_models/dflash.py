"""DFlash: a block of tokens drafted in one pass, over keys and values that are made of the target's features."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.buckets import Forward, block_keys
from specdec.cache import PagedKVCache
from specdec.chunk import Chunk, Inputs, Packed, new_slots
from specdec.graphs import STATES, Output
from specdec.kernels import ops
from specdec.kernels.rows import PackedRows, RequestRows
from specdec.protocols import Noise, RequestView
from specdec.target import PagedModel
from specdec.tree import TokenTree
from specdec.types import Draft

from .block_network import BlockNetwork, KeysValues
from .head_layers import Attend
from .head_network import HeadNetwork, scorings_of
from .head_runner import HeadRunner, on_device
from .marginals import Marginals, OnePass


class BlockRows(Marginals):
    """A block network over pages.

    rows of the pool   0 ............ filled ............ length .............. length + block
                       | made of the target's features    | the block, for this pass only
    """

    network: BlockNetwork

    def __init__(self, network: BlockNetwork) -> None:
        super().__init__(network, network.depth, network.config.max_position_embeddings)
        self._scorings = scorings_of(network.config, network.num_layers)
        self._hidden = torch.empty(0)  # [requests * depth, hidden], of the rows that draft

    @property
    def block_size(self) -> int:
        """Rows of a block: no more than are drafted from, and that of the pending token."""
        return self.depth if self.network.shape.sample_from_anchor else self.depth + 1

    @property
    def is_corrected(self) -> bool:
        return self.network.markov_head is not None

    def adopt(self, target: PagedModel) -> None:
        """Drafts for this target from now on.

        Raises:
            ValueError: it was made for another one.
        """
        super().adopt(target)
        self.require_mask(self.network.shape.mask_token_id)

    def rows_after(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Tensor:
        """Logits [blocks, depth, draft vocab]; the pool now holds what is made of the features."""
        blocks = [chunk for chunk in chunks if chunk.num_logits]
        for chunk in blocks:
            cache.stage(chunk.table, self.block_size)
        context = self._context(cache, chunks)
        if not blocks:
            self._store(cache, context)
            return torch.empty(0)
        given = self._blocks(cache, blocks)
        output = self._by_graph(cache, given, context)
        if output is None:
            packed = None if context is None else _packed(context, self.network.device)
            output = self._passed(cache, _packed(given, self.network.device), packed, PackedRows(_causal(given)))
        logits, taps = output
        self._hidden = taps[STATES]
        return logits[: sum(given.wanted)].view(len(blocks), self.depth, -1)

    def corrected(self, rows: Tensor, places: Sequence[int], tokens: Tensor) -> Tensor:  # [n, draft vocab], [n]
        """The rows with what the Markov head makes of the tokens in front of them."""
        assert self.network.markov_head is not None
        markov, hidden = self.network.markov_head, self._hidden
        if markov.gate_proj is not None:
            hidden = hidden.index_select(0, on_device(places, hidden.device))
        bias: Tensor = markov(tokens.to(hidden.device), hidden)
        surplus = rows.shape[-1] - bias.shape[-1]  # a language model head that is the target's may be of another width
        return rows + (pad(bias, (0, surplus)) if surplus else bias).to(rows.device)

    def confidences(self, view: RequestView, tokens: Sequence[int]) -> list[float]:
        """How likely each drafted token is to be accepted if those in front of it are; `tokens` begin with the pending
        one."""
        first, count = self._firsts[view.table], len(tokens) - 1
        in_front = on_device(tokens[:-1], self._hidden.device)
        with self.running():
            probs: list[float] = self.network.confidences(self._hidden[first : first + count], in_front).tolist()
        return probs

    def _context(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Inputs | None:
        """The committed rows of these chunks, that is all but the pending one, and their features."""
        requests, features = [], []
        for chunk in chunks:
            table, start, stop = chunk.table, chunk.start, chunk.start + len(chunk.tree) - chunk.num_logits
            if stop > start:
                first_slot = cache.contiguous_start(table, stop)
                slots = None if first_slot is not None else cache.slots(table, 0, stop)
                requests.append(RequestRows(start, stop - start, 0, None, None, first_slot, slots, cache.page_size))
                features.append(self.features[table].rows(start, stop))
        if not requests:
            return None
        positions = [position for request in requests for position in request.positions()]
        rows = torch.cat(features).to(device=self.network.device, dtype=self.network.dtype)
        return Inputs(requests, [0] * len(positions), positions, [0] * len(requests), rows)

    def _blocks(self, cache: PagedKVCache, blocks: Sequence[Chunk]) -> Inputs:
        """The rows of the blocks, each of which begins with its pending token."""
        size, requests, tokens = self.block_size, [], []
        tree = list(range(-1, size - 1)), list(range(size))
        for chunk in blocks:
            table, start = chunk.table, chunk.table.length
            first_slot = cache.contiguous_start(table, start + size)
            slots = None if first_slot is not None else cache.slots(table, 0, start + size)
            requests.append(RequestRows(start, size, 0, *tree, first_slot, slots, cache.page_size, is_mutual=True))
            tokens += [chunk.tree.tokens[-1], *[self.network.shape.mask_token_id] * (size - 1)]
        positions = [position for request in requests for position in request.positions()]
        return Inputs(requests, tokens, positions, [self.depth] * len(requests))

    def _by_graph(self, cache: PagedKVCache, blocks: Inputs, context: Inputs | None) -> Output | None:
        graphs = self._graphs_over(cache)
        if graphs is None or context is None:
            return None
        keys, given = block_keys(blocks, context, self.block_size), [blocks, context]
        if keys is not None and self.network.shape.causal_layers:
            keys, given = [*keys, keys[0]], [*given, blocks._replace(requests=_causal(blocks))]

        def run(block: Forward, in_front: Forward, causal: Forward | None = None) -> Output:
            return self._passed(cache, block.packed, in_front.packed, (causal or block).rows)

        return graphs.replayed("block", keys, run, given)

    def _passed(self, cache: PagedKVCache, block: Packed, context: Packed | None, causal: PackedRows) -> Output:
        """Logits of the rows that draft, [blocks * depth, draft vocab], and what was made into them."""
        attend = self._attention(cache, block, context, causal)
        hidden: Tensor = self.network(self.vocabulary.embedded(block.tokens[0]), block.positions[0], attend)
        drafting = hidden.view(-1, self.block_size, hidden.shape[-1])[:, self.block_size - self.depth :].flatten(0, 1)
        return self.vocabulary.outputs(drafting), {STATES: drafting}

    def _attention(self, cache: PagedKVCache, block: Packed, context: Packed | None, causal: PackedRows) -> Attend:
        """Stores keys and values of the context and of the blocks, whose rows see all of them."""
        pool, made = cache.pool(self.pool_name), self._made_of(context)
        assert block.slots is not None
        slots = block.slots
        if context is not None and context.slots is not None:
            slots = torch.cat((context.slots, slots))

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # [rows, heads, dim] all
            if made:
                keys, values = (torch.cat(pair) for pair in zip(made[layer], (keys, values), strict=True))
            pool.write(layer, keys, values, slots)
            stored, query = pool.stored(layer), queries.transpose(0, 1)[None]
            rows, scoring = causal if layer in self.network.shape.causal_layers else block.rows, self._scorings[layer]
            return ops.tree_attention(query, stored.keys, stored.values, rows, scoring, None, stored.scales)[0]

        return attend

    def _store(self, cache: PagedKVCache, context: Inputs | None) -> None:
        """Adds rows in front of a block to the pool."""
        if context is None:
            return
        packed = _packed(context, self.network.device)
        assert packed.slots is not None
        for layer, (keys, values) in enumerate(self._made_of(packed)):
            cache.pool(self.pool_name).write(layer, keys, values, packed.slots)

    def _made_of(self, context: Packed | None) -> list[KeysValues]:  # [rows, kv_heads, dim] of each layer
        if context is None or context.states is None:
            return []
        return self.network.context(context.states, context.positions[0])


def _packed(given: Inputs, device: torch.device) -> Packed:
    """The rows one after the other, with the slots that they are stored in."""
    tokens, positions = (torch.tensor([numbers], device=device) for numbers in (given.tokens, given.positions))
    slots = new_slots(given.requests).to(device)
    return Packed(tokens, positions, PackedRows(given.requests), None, slots, 0, len(given.tokens), given.states)


def _causal(blocks: Inputs) -> list[RequestRows]:
    """The same rows in layers in which none sees those behind it."""
    return [request._replace(parents=None, depths=None, is_mutual=False) for request in blocks.requests]


class DFlash(OnePass):
    """A drafter that runs a block network of the kind of DFlash (2602.06036) and DSpark (2607.05147).

    With `num_tree_nodes` it drafts the best tree of the block's rows (DDTree, 2604.12989). With a confidence head a
    chain ends in front of the first token that is accepted, with all in front of it, with a probability below
    `confidence_threshold`. The options are those of `TokenDrafter`.

    Args:
        model: the network, in the precision and on the device it shall run in.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from specdec.draft_models.block_network import BlockShape
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> target, shape = LlamaForCausalLM(LlamaConfig(**sizes)), BlockShape(block_size=4, mask_token_id=31)
        >>> network = BlockNetwork(LlamaConfig(**{**sizes, "num_hidden_layers": 1}), [0, 2], shape)
        >>> import specdec
        >>> prompt = torch.tensor([[3, 4, 5]])
        >>> text = specdec.generate(target, prompt, drafter=DFlash(network), max_new_tokens=8, do_sample=False)
        >>> torch.equal(text, target.generate(prompt, max_new_tokens=8, do_sample=False))
        True
    """

    name = "dflash"
    network_type: ClassVar[type[HeadNetwork]] = BlockNetwork

    def __post_init__(self, model: Any) -> None:
        super().__post_init__(model)
        self._least = 0.0  # probability that a chain is accepted as far as it goes
        if model.confidence_head is not None and not self._is_tree:
            self._least, self._threshold = self._threshold, 0.0

    def _head_over(self, network: Any) -> HeadRunner:
        self._blocks = BlockRows(network)
        return self._blocks

    def _proposals(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        drafts = super()._proposals(views, budgets, noises)
        for view in views:  # the rows of the block are for one pass
            view.table.filled[self.pool] = min(view.table.length, view.table.filled[self.pool])
        if not self._least:
            return drafts
        return [self._cut(draft, view) for draft, view in zip(drafts, views, strict=True)]

    def _cut(self, draft: Draft, view: RequestView) -> Draft:
        """The chain as far as it is likely enough to be accepted. What decides about a token are those in front of it,
        so drawn tokens stay what they were drawn as."""
        tokens = draft.tree.tokens
        if len(tokens) == 1:
            return draft
        accepted = accumulate(self._blocks.confidences(view, tokens), mul)
        length = next((i for i, prob in enumerate(accepted) if prob < self._least), len(tokens) - 1)
        if length == len(tokens) - 1:
            return draft
        tree, probs = TokenTree.chain(tokens[: length + 1]), draft.probs
        if probs is not None:
            probs = torch.cat((probs[:length], torch.zeros_like(probs[:1])))
        return Draft(tree, draft.sampled[: length + 1], probs if length else None, source=draft.source)
