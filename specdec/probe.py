"""Which layers of the target a head was trained on, found out by trying: the right ones are accepted far more often."""

import warnings
from collections.abc import Callable, Sequence

from .cache import PagedKVCache
from .engine import Engine
from .metrics import summarize
from .noise import PhiloxNoise
from .protocols import Drafter
from .request import Request
from .sampling import Sampler
from .stopping import Stopping
from .target import PagedModel
from .verifiers.sample_and_match import SampleAndMatch

NUM_PROBED = 64  # tokens of the text that is drafted
SEED = 0  # drawn with it: the same text for every drafter


def num_accepted(drafter: Drafter, target: PagedModel) -> int:
    """How many drafted tokens are accepted of a short text that the target draws from the beginning of one.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from specdec.draft_models.draft_model import DraftModel
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> oneself = DraftModel(PagedModel(model, pool="draft"), 3, draft_sample_method="coupled")
        >>> num_accepted(oneself, PagedModel(model))  # all of three, in every round but the first
        47
    """
    length = min(NUM_PROBED, target.max_positions - 1)
    request = Request([_beginning(target)], Sampler([], True), Stopping(max_length=1 + length), PhiloxNoise(SEED))
    with Engine(target, drafter, SampleAndMatch(), target.cache or PagedKVCache()) as engine:
        return summarize(engine.rounds([request])).num_accepted


def better_layers(
    build: Callable[[tuple[int, ...]], Drafter], choices: Sequence[tuple[int, ...]], target: PagedModel, path: str
) -> tuple[int, ...]:
    """The feature layers with which most is accepted, the first ones if none are better; with a warning otherwise.

    Args:
        build: a drafter that reads these layers.
        choices: feature layers; first those that the head's config states.
        path: of the head, for the warning.
    """
    counts = [num_accepted(build(layers), target) for layers in choices]
    best = choices[counts.index(max(counts))]
    if best != choices[0]:
        warnings.warn(
            f"the config of {path!r} says that the head reads layers {list(choices[0])}, but of {NUM_PROBED} tokens "
            f"{max(counts)} are accepted with {list(best)} and {counts[0]} with those; {list(best)} are used",
            stacklevel=3,
        )
    return best


def _beginning(target: PagedModel) -> int:
    """A token that texts begin with."""
    config = target.model.config.get_text_config(decoder=True)
    for token in (config.bos_token_id, config.eos_token_id):
        first = token[0] if isinstance(token, list) else token
        if first is not None and 0 <= first < target.num_embeddings:
            return int(first)
    return 0
