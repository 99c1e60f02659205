"""P-EAGLE: a head of EAGLE-3 that drafts in one pass, from rows of masked tokens behind the pending one.

    rows of the pool   0         1 ............ length | length + 1 ... length + depth - 1
                       nothing   as those of EAGLE-3   | the mask token, and a hidden state that was learnt to stand
                                                       | where there are no features yet; for this pass only

Row j of EAGLE-3 is made of token j and of the target's features of row j - 1, so the pending token's is no guess, and
stays. Every row sees those in front of it, so a row of masks says the same however many there are behind it.
"""

import sys
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specdec.cache import PagedKVCache
from specdec.chunk import Chunk, Inputs, Packed, inputs_of
from specdec.graphs import STATES, Output
from specdec.target import PagedModel
from specdec.tree import TokenTree

from .eagle import Eagle
from .eagle3 import Eagle3Network, Norms
from .head_runner import HeadRunner, on_device
from .marginals import Marginals, OnePass
from .paged_head import Rows, behind_row_0


class PEagleNetwork(Eagle3Network):
    """The network of P-EAGLE (2602.01469): EAGLE-3's, which was trained on rows of masks, too.

    Args:
        config: of its layers; published heads have 4, say.
        feature_layers: of the target.
        mask_token_id: what stands for tokens that are not drafted yet.
        draft_tokens: the target's tokens that it may draft; None for all.
        norms: where it norms.
        target_size: hidden size of the target, if it is another.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...                      num_attention_heads=2)
        >>> network = PEagleNetwork(config, feature_layers=[0, 2, 3], mask_token_id=31)
        >>> network.mask_hidden.shape, network.fused(network.mask_hidden).shape
        (torch.Size([1, 1, 24]), torch.Size([1, 1, 8]))
    """

    def __init__(
        self,
        config: PretrainedConfig,
        feature_layers: Sequence[int],
        mask_token_id: int,
        draft_tokens: Sequence[int] | None = None,
        norms: Norms | None = None,
        target_size: int | None = None,
    ) -> None:
        super().__init__(config, feature_layers, draft_tokens, norms, target_size=target_size)
        self.mask_token_id = mask_token_id
        self.mask_hidden = nn.Parameter(torch.randn(1, 1, self.fc.in_features))  # in the place of features


class MaskedRows(Marginals):
    """The network of P-EAGLE over pages.

    Args:
        network: left as it is found.
    """

    network: PEagleNetwork

    def __init__(self, network: PEagleNetwork) -> None:
        super().__init__(network, sys.maxsize, network.config.max_position_embeddings)
        self._pass = Rows(network, self.pool_name)

    def adopt(self, target: PagedModel) -> None:
        """Drafts for this target from now on.

        Raises:
            ValueError: it was made for another one.
        """
        super().adopt(target)
        self.require_mask(self.network.mask_token_id)

    def rows_after(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Tensor:
        """Logits [requests, depth, draft vocab]; of rows that are not for this pass only the pool is then complete."""
        network = self.network
        masks = [network.mask_token_id] * (self.depth - 1)
        features: list[Tensor] = []
        whole = []
        for chunk in chunks:
            start, tree = chunk.start, chunk.tree
            known = self.features[chunk.table].rows(start - 1, start - 1 + len(tree))
            features.append(known.to(device=network.device, dtype=network.dtype))
            if chunk.num_logits:
                cache.stage(chunk.table, self.depth)
                features.append(network.mask_hidden[0].expand(len(masks), -1))
                tree = TokenTree.chain([*tree.tokens, *masks])
            whole.append(Chunk(chunk.table, start, tree, num_logits=self.depth if chunk.num_logits else 0))
        given = behind_row_0(inputs_of(cache, whole))._replace(states=torch.cat(features))
        logits = self._by_graph(cache, given)
        if logits is None:
            logits, _ = self._drafted(cache, self._pass.packed(given))
        return logits.unflatten(0, (-1, self.depth)) if len(logits) else logits

    def _by_graph(self, cache: PagedKVCache, given: Inputs) -> Tensor | None:  # [rows wanted, draft vocab]
        """A captured pass gives the logits of all its rows."""
        graphs = self._graphs_over(cache)
        counts = [request.num_nodes for request in given.requests]
        if graphs is None or 0 in given.wanted:
            return None
        output = graphs.run(partial(self._drafted, cache), given._replace(wanted=counts), "masked")
        if output is None:
            return None
        ends = accumulate(counts)
        rows = [row for end, count in zip(ends, given.wanted, strict=True) for row in range(end - count, end)]
        return output[0].index_select(0, on_device(rows, output[0].device))

    def _drafted(self, cache: PagedKVCache, packed: Packed) -> Output:
        """Logits [rows wanted, draft vocab], and the states they were read of."""
        assert packed.states is not None
        states = self.network.fused(packed.states)
        _, read = self._pass.run(cache, packed._replace(states=states), self.vocabulary)
        return self.vocabulary.outputs(read), {STATES: read}


class PEagle(Eagle, OnePass):
    """A drafter that runs a P-EAGLE head: its rows are those of an EAGLE-3 head, but one pass drafts all tokens.

    With `num_tree_nodes` it drafts the best tree of its rows (DDTree, 2604.12989). The options are those of
    `TokenDrafter`. Any depth can be drafted, also one that the head was not trained for.

    Args:
        model: the head, in the precision and on the device it shall run in.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> head = PEagleNetwork(LlamaConfig(**{**sizes, "num_hidden_layers": 2}), [0, 1, 2], mask_token_id=31)
        >>> drafter = {"method": "peagle", "model": head, "num_speculative_tokens": 4}
        >>> import specdec
        >>> target, prompt = LlamaForCausalLM(LlamaConfig(**sizes)), torch.tensor([[3, 4, 5]])
        >>> text = specdec.generate(target, prompt, drafter=drafter, max_new_tokens=8, do_sample=False)
        >>> torch.equal(text, target.generate(prompt, max_new_tokens=8, do_sample=False))
        True
    """

    name = "peagle"
    network_type = PEagleNetwork

    def _head_over(self, network: Any) -> HeadRunner:
        return MaskedRows(network)
