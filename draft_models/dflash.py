"""DFlash: a block of tokens drafted in one pass, over keys and values that are made of the target's features."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.cache import PagedKVCache
from specdec.chunk import Chunk
from specdec.kernels import ops
from specdec.kernels.rows import PackedRows, RequestRows
from specdec.protocols import Noise, RequestView
from specdec.target import PagedModel
from specdec.tree import TokenTree
from specdec.types import Draft

from .block_network import BlockNetwork, KeysValues
from .head_drafter import HeadRunner
from .head_layers import Attend
from .head_network import HeadNetwork, Vocabulary, scorings_of
from .marginals import Marginals, OnePass


class Context(NamedTuple):
    """What is added to the pool in front of the blocks."""

    layers: list[KeysValues]  # [rows, kv_heads, dim] of each layer
    slots: Tensor  # [rows] int64


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

    def rows_after(self, cache: PagedKVCache, chunks: Sequence[Chunk], vocabulary: Vocabulary) -> Tensor:
        """Logits [blocks, depth, draft vocab]; the pool now holds what is made of the features."""
        context = self._context(cache, chunks)
        blocks = [chunk for chunk in chunks if chunk.num_logits]
        if not blocks:
            if context is not None:
                for layer, (keys, values) in enumerate(context.layers):
                    cache.pool(self.pool_name).write(layer, keys, values, context.slots)
            return torch.empty(0)
        for chunk in blocks:
            cache.stage(chunk.table, self.block_size)
        masked = [self.network.shape.mask_token_id] * (self.block_size - 1)
        tokens = [token for chunk in blocks for token in (chunk.tree.tokens[-1], *masked)]
        positions = [row for chunk in blocks for row in self._rows_of_block(chunk)]
        device = self.network.device
        embedded = vocabulary.embedded(torch.tensor(tokens, device=device))
        attend = self._attention(cache, blocks, context)
        hidden: Tensor = self.network(embedded, torch.tensor(positions, device=device), attend)
        drafting = hidden.view(len(blocks), self.block_size, -1)[:, self.block_size - self.depth :]
        self._hidden = drafting.flatten(0, 1)
        return vocabulary.outputs(drafting)

    def corrected(self, rows: Tensor, places: Sequence[int], tokens: Tensor) -> Tensor:  # [n, draft vocab], [n]
        """The rows with what the Markov head makes of the tokens in front of them."""
        assert self.network.markov_head is not None
        hidden = self._hidden[list(places)]
        bias: Tensor = self.network.markov_head(tokens.to(hidden.device), hidden)
        surplus = rows.shape[-1] - bias.shape[-1]  # a language model head that is the target's may be of another width
        return rows + (pad(bias, (0, surplus)) if surplus else bias).to(rows.device)

    def confidences(self, view: RequestView, tokens: Sequence[int]) -> list[float]:
        """How likely each drafted token is to be accepted if those in front of it are; `tokens` begin with the pending
        one."""
        first, count = self._firsts[view.table], len(tokens) - 1
        in_front = torch.tensor(tokens[:-1], device=self._hidden.device)
        with self.running():
            probs: list[float] = self.network.confidences(self._hidden[first : first + count], in_front).tolist()
        return probs

    def _rows_of_block(self, chunk: Chunk) -> range:
        return range(chunk.table.length, chunk.table.length + self.block_size)

    def _context(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Context | None:
        """Of the committed rows of these chunks, that is all but the pending one."""
        features, slots = [], []
        positions: list[int] = []
        for chunk in chunks:
            stop = chunk.start + len(chunk.tree) - chunk.num_logits
            if stop > chunk.start:
                features.append(self.features[chunk.table].rows(chunk.start, stop))
                slots.append(cache.slots(chunk.table, chunk.start, stop))
                positions += range(chunk.start, stop)
        if not features:
            return None
        device = self.network.device
        rows = torch.cat(features).to(device=device, dtype=self.network.dtype)
        layers = self.network.context(rows, torch.tensor(positions, device=device))
        return Context(layers, torch.cat(slots).to(device))

    def _attention(self, cache: PagedKVCache, blocks: Sequence[Chunk], context: Context | None) -> Attend:
        """Stores keys and values of the context and of the blocks, whose rows see all of them."""
        pool, size = cache.pool(self.pool_name), self.block_size
        places, requests = [] if context is None else [context.slots], []
        for chunk in blocks:
            table, start, stop = chunk.table, chunk.table.length, chunk.table.length + size
            places.append(cache.slots(table, start, stop).to(self.network.device))
            first_slot = cache.contiguous_start(table, stop)
            slots = None if first_slot is not None else cache.slots(table, 0, stop)
            tree = list(range(-1, size - 1)), list(range(size))
            requests.append(RequestRows(start, size, 0, *tree, first_slot, slots, cache.page_size, is_mutual=True))
        new = torch.cat(places)
        mutual = PackedRows(requests)
        causal = PackedRows([request._replace(parents=None, depths=None, is_mutual=False) for request in requests])

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # [rows, heads, dim] all
            if context is not None:
                keys, values = (torch.cat(pair) for pair in zip(context.layers[layer], (keys, values), strict=True))
            pool.write(layer, keys, values, new)
            stored, query = pool.stored(layer), queries.transpose(0, 1)[None]
            rows, scoring = causal if layer in self.network.shape.causal_layers else mutual, self._scorings[layer]
            return ops.tree_attention(query, stored.keys, stored.values, rows, scoring, None, stored.scales)[0]

        return attend


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
