"""Which layers of the target a head was trained on, found out by trying: the right ones are accepted far more often.

One layer beside the right one is nearly as good for some heads, and which of the two is accepted more often on a short
text is then chance. So what a config states is believed unless the difference is more than that.
"""

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

NUM_PROBED = 64  # tokens of each text that is drafted
SEEDS = range(4)  # drawn with them: the same texts for every drafter
# Standard deviations of a difference of counts, were they Poisson's; accepted tokens come in runs and vary more. A
# trained EAGLE-3 and a block head of the embedded target differ by up to 0.6 from themselves one layer above or below.
MIN_DEVIATIONS = 3.0


def num_accepted(drafter: Drafter, target: PagedModel) -> int:
    """How many drafted tokens are accepted of short texts that the target draws from the beginning of one.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from specdec.draft_models.draft_model import DraftModel
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model = LlamaForCausalLM(config)
        >>> oneself = DraftModel(PagedModel(model, pool="draft"), 3, draft_sample_method="coupled")
        >>> num_accepted(oneself, PagedModel(model))  # all of three, in every round but the first
        188
    """
    length = min(NUM_PROBED, target.max_positions - 1)
    prompt, sampler, stopping = [_beginning(target)], Sampler([], True), Stopping(max_length=1 + length)
    requests = [Request(prompt, sampler, stopping, PhiloxNoise(seed)) for seed in SEEDS]
    with Engine(target, drafter, SampleAndMatch(), target.cache or PagedKVCache()) as engine:
        return summarize(engine.rounds(requests)).num_accepted


def better_layers(
    build: Callable[[tuple[int, ...]], Drafter], choices: Sequence[tuple[int, ...]], target: PagedModel, path: str
) -> tuple[int, ...]:
    """The feature layers with which most is accepted, the first ones if none are clearly better; with a warning
    otherwise.

    Args:
        build: a drafter that reads these layers.
        choices: feature layers; first those that the head's config states.
        path: of the head, for the warning.
    """
    counts = [num_accepted(build(layers), target) for layers in choices]
    best, most = choices[counts.index(max(counts))], max(counts)
    if most - counts[0] <= MIN_DEVIATIONS * (most + counts[0]) ** 0.5:
        return choices[0]
    warnings.warn(
        f"the config of {path!r} says that the head reads layers {list(choices[0])}, but of "
        f"{len(SEEDS) * NUM_PROBED} tokens {most} are accepted with {list(best)} and {counts[0]} with those; "
        f"{list(best)} are used",
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
