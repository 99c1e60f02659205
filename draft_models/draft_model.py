"""Drafting with a small language model that has the target's vocabulary."""

from transformers import PreTrainedModel

from specdec.pool import pool_name
from specdec.rollout import DraftNetwork
from specdec.target import PagedModel

from .token_drafter import TokenDrafter


def pool_of(model: PreTrainedModel) -> str:
    """The name of a draft model's pool: its own, so that no cache takes another model's rows for its rows."""
    return pool_name("draft", model)


class DraftModel(TokenDrafter):
    """A drafter that runs a causal language model of Hugging Face, one forward pass per level of all drafts.

    Its rows lie in the pages of the target's cache. Each round begins with what it missed: the rows of accepted tokens
    that it has not run, then the pending token. The options are those of `TokenDrafter`.

    Args:
        model: any causal LM with the target's vocabulary; or a `PagedModel` of one, with a pool of its own.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from specdec.cache import PagedKVCache
        >>> from specdec.noise import PhiloxNoise
        >>> from specdec.protocols import RequestView
        >>> from specdec.sampling import Sampler
        >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        >>> drafter = DraftModel(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)), num_speculative_tokens=3)
        >>> cache = PagedKVCache()
        >>> view = RequestView(0, [5, 7], prompt_length=2, table=cache.open([5]), sampler=Sampler(), cache=cache)
        >>> cache.stage(view.table, 1)
        >>> cache.commit(view.table, [], [5])  # the target has run the prompt but for the pending token
        >>> len(drafter.propose([view], [9], [PhiloxNoise(0)])[0])  # the pending token and three drafted ones
        4
    """

    name = "draft_model"

    def _runner(self, model: PreTrainedModel | PagedModel) -> DraftNetwork:
        return model if isinstance(model, PagedModel) else PagedModel(model, pool=pool_of(model))
