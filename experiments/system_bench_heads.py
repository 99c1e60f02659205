"""Self-draft heads of real shapes with random weights beside a target: how much of a round drafting is.

What they draft is refused nearly always, which changes next to nothing in how long it takes.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config

from specdec.draft_models.block_network import BlockNetwork, BlockShape
from specdec.draft_models.dflash import DFlash
from specdec.draft_models.eagle3 import Eagle3, Eagle3Network
from specdec.draft_models.head_drafter import HeadDrafter
from specdec.draft_models.head_network import HeadNetwork

from .bench_results import Row
from .head_recipe import layer_config
from .shapes import DTYPE, weight_bytes
from .statistics import median_index
from .system_bench_subject import Subject
from .system_bench_texts import interleaved, laps, ours, token_row


class HeadShape(NamedTuple):
    """A head for any target. Widths of the attention are the target's."""

    method: str
    num_layers: int
    num_features: int  # layers of the target
    num_tokens: int  # drafted at a time
    draft_tokens: int | None = None  # that it knows; None: all, by the target's language model head
    width: float | None = None  # of its MLP, in hidden sizes; None: the target's


# Of EAGLE-3 and DFlash what is published for targets of this size; and of each one so small that the goal is in reach.
HEADS = {
    "eagle3 chain": HeadShape("eagle3", 1, 3, 5, draft_tokens=32000),
    "small eagle3 chain": HeadShape("eagle3", 1, 3, 5, draft_tokens=8192, width=1.0),
    "block": HeadShape("dflash", 5, 5, 15),
    "small block": HeadShape("dflash", 1, 3, 7, draft_tokens=32000),
}


def head_rows(subject: Subject, name: str) -> list[Row]:
    """The share of a round that is drafting, by the host's clock: a round waits for its draft and for its verdicts.

    floor_share is that of the weights: of what target and head must read of theirs in a round, the head's part.
    """
    shape, target = HEADS[name], subject.target(subject.best)
    drafter, network = drafter_of(shape, subject)
    prompt, sizes = subject.prompts(1), subject.sizes
    said = ours(target, sizes.new_tokens)(prompt).tokens
    texts, _ = interleaved({"head": ours(target, sizes.new_tokens, drafter)}, prompt, sizes.repeats)
    found = texts["head"]
    kept = found[median_index([text.ms_per_token for text in found])]
    shares, draft_ms = laps(kept.decoding)
    read, own = weight_bytes(subject.model), draft_bytes(network, shape, subject)
    report = drafter.graph_report
    return [
        {
            **token_row(subject, f"head {name}", found, said),
            "mode": subject.best,
            "length": shape.num_tokens,
            "tokens_per_round": kept.tokens_per_round,
            "draft_ms": draft_ms,
            "draft_share": statistics.median([laps(text.decoding)[0]["draft"] for text in found]),
            "floor_share": own / (read + own),
            "shares": shares,
            "graphs": None if report is None else asdict(report),
        }
    ]


def drafter_of(shape: HeadShape, subject: Subject) -> tuple[HeadDrafter, HeadNetwork]:
    """A drafter with random weights on the subject's device, and its network."""
    build: dict[str, Callable[[HeadShape, PreTrainedModel], HeadNetwork]] = {"eagle3": _eagle3, "dflash": _block}
    devices = [subject.device] if subject.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad(), subject.device:
        torch.manual_seed(0)
        network = build[shape.method](shape, subject.model)
    network.to(device=subject.device, dtype=DTYPE).eval()
    kinds: dict[str, type[HeadDrafter]] = {"eagle3": Eagle3, "dflash": DFlash}
    return kinds[shape.method](network, shape.num_tokens), network


def draft_bytes(network: HeadNetwork, shape: HeadShape, subject: Subject) -> int:
    """What a draft must read of the weights: of a chain once per token, but for the projection of the features."""
    weights: dict[str, int] = {name: weight.nbytes for name, weight in network.named_parameters()}
    if network.lm_head is None:
        outputs: Any = subject.model.get_output_embeddings()
        weights["lm_head"] = outputs.weight.nbytes
    once = sum(size for name, size in weights.items() if name.startswith("fc."))
    passes = shape.num_tokens if shape.method == "eagle3" else 1
    return once + passes * (sum(weights.values()) - once)


def spread(count: int, num_layers: int) -> list[int]:
    """So many layers, from the first to the last.

    Example:
        >>> spread(3, 32)
        [0, 15, 31]
    """
    return [index * (num_layers - 1) // (count - 1) for index in range(count)]


def _eagle3(shape: HeadShape, target: PreTrainedModel) -> HeadNetwork:
    layers = spread(shape.num_features, target.config.num_hidden_layers)
    return Eagle3Network(_config(LlamaConfig, shape, target), layers, _known(shape, target.config))


def _block(shape: HeadShape, target: PreTrainedModel) -> HeadNetwork:
    block = BlockShape(shape.num_tokens + 1, target.config.vocab_size - 1)
    layers = spread(shape.num_features, target.config.num_hidden_layers)
    return BlockNetwork(_config(Qwen3Config, shape, target), layers, block, _known(shape, target.config))


def _config(kind: type[PretrainedConfig], shape: HeadShape, target: PreTrainedModel) -> PretrainedConfig:
    width = None if shape.width is None else int(shape.width * target.config.hidden_size)
    return layer_config(kind, target, shape.num_layers, width)


def _known(shape: HeadShape, config: PretrainedConfig) -> Sequence[int] | None:
    return None if shape.draft_tokens is None else range(min(shape.draft_tokens, config.vocab_size))
