"""A head's training from files to files: responses of the target, the head's shape, the run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from specdec.anatomy import logits_width_of
from specdec.draft_models.head_reading import read_head
from specdec.draft_models.head_writing import files_of
from specdec.methods import paged
from specdec.target import PagedModel

from .head_batches import FeatureCache
from .head_block import BlockConfig, BlockRecipe
from .head_eagle3 import Eagle3Recipe
from .head_features import Features, FrozenTarget, fingerprint, online
from .head_files import Advance, nobody
from .head_medusa import MedusaRecipe, calibrated_choices
from .head_openings import Opening, OpeningOptions, Openings, openings_of_nothing, read_openings
from .head_recipe import HeadConfig, Recipe
from .head_samples import ResponseConfig, Samples, begin_responses, frequent_tokens, read_responses, write_responses
from .head_watch import Watch
from .loading import Models
from .prompts import PROMPTS
from .train_head import Lesson, save_head, train_head

NEW_TOKENS = 64  # of each measurement's texts
RECIPES: dict[str, type[Recipe]] = {recipe.kind: recipe for recipe in (MedusaRecipe, Eagle3Recipe, BlockRecipe)}


@dataclass(frozen=True, slots=True)
class HeadFiles:
    """Where a run reads and writes."""

    run: Path
    responses: Path | None = None  # of an earlier run, to be learnt on once more; None: they are written, in this one
    prompts: Path = PROMPTS  # to measure on, if the target writes from nothing
    cache_gb: float = 0.0  # how much may be written of features; 0: they are computed when they are wanted


def train_on_responses(
    config: HeadConfig, writing: ResponseConfig, files: HeadFiles, models: Models, advance: Advance = nobody
) -> dict[str, Any]:
    """What came out, as plain values; the head lies in `files.run/head`.

    Args:
        config: of the head, which says of what kind it is.
        writing: what the target writes, unless that has been done.
        files: from and to where.
        models: the target and its tokenizer.
        advance: told how far it is.

    Raises:
        ValueError: something is missing, or does not go together.
    """
    accelerator, began = Accelerator(cpu=models.target.device.type == "cpu"), time.time()
    folder = files.responses or files.run / "responses"
    share = accelerator.process_index, accelerator.num_processes
    if files.responses is None:
        writing = replace(writing, writer=fingerprint(models.target))
        with accelerator.main_process_first():
            begin_responses(_openings(writing, files, models, config), writing, folder)
        write_responses(models.target, writing, folder, advance, share)
        accelerator.wait_for_everyone()
    texts, held_out = read_responses(folder)
    _require_known(texts, held_out, paged(models.target).num_embeddings)
    config, tokens = _settled(config, texts.cut(config.sequence_length), models.target)
    recipe = recipe_of(config, paged(models.target), tokens)
    samples = _long_enough(texts.cut(config.sequence_length, recipe.shortest), recipe)
    features: Features = online(recipe.target)
    if files.cache_gb:
        cache = FeatureCache(folder / "features", samples, recipe.target, files.cache_gb)
        cache.fill(share, advance)
        accelerator.wait_for_everyone()
        features = cache
    room = recipe.target.paged.max_positions - max(len(opening.tokens) for opening in held_out)
    watch = Watch(held_out, min(NEW_TOKENS, room), config.temperature)
    lesson = Lesson(recipe, samples, features, watch)
    best = train_head(lesson, files.run, accelerator, advance)
    if isinstance(recipe, MedusaRecipe) and recipe.config.num_tree_nodes and accelerator.is_main_process:
        _calibrate(recipe, files.run / "head", samples)
    counts = samples.counts(recipe.target.paged.vocab_size)
    return {
        "kind": recipe.kind,
        "tokens_per_step": best.best,
        "step": best.best_step,
        "num_parameters": sum(parameter.numel() for parameter in recipe.network.parameters()),
        "num_texts": len(samples),
        "num_response_tokens": int(counts.sum()),
        "known_share": 1.0 if tokens is None else float(counts[tokens].sum() / counts.sum()),
        "seconds": time.time() - began,
    }


def _calibrate(recipe: MedusaRecipe, folder: Path, samples: Samples) -> None:
    """Gives the best heads of a run the tree for such texts."""
    best: Any = read_head(str(folder), recipe.target.paged).network
    recipe.network.load_state_dict(best.state_dict())
    recipe.network.choices = calibrated_choices(recipe, samples, online(recipe.target), recipe.config.num_tree_nodes)
    save_head(recipe, folder)


def recipe_of(config: HeadConfig, target: PagedModel, draft_tokens: list[int] | None = None) -> Recipe:
    """An untrained head for a target, in the precision it will run in, ready to be trained.

    Example:
        >>> import specdec
        >>> from specdec.experiments.head_medusa import MedusaConfig
        >>> target, _, _ = specdec.load_embedded()
        >>> recipe_of(MedusaConfig(num_heads=3), paged(target)).network.depth
        3
    """
    if target.dtype == torch.float16:
        raise ValueError("expected a target whose precision a head can learn in, got float16; pass --dtype bfloat16")
    kind = next(recipe for recipe in RECIPES.values() if recipe.config_type is type(config))
    torch.manual_seed(config.seed)
    network = kind.network_for(target.model, config, draft_tokens).to(device=target.device, dtype=target.dtype)
    files_of(network, kind.layout, target.model.config)  # refused now, not when it has been trained
    return kind(network, FrozenTarget(target, network.feature_layers), config)


def _long_enough(samples: Samples, recipe: Recipe) -> Samples:
    """The texts, if there are any."""
    if not len(samples):
        raise ValueError(
            f"expected texts of at least {recipe.shortest} tokens to learn {recipe.depth} in a row, got none; raise "
            "--response-length and --sequence-length, or learn fewer"
        )
    return samples


def _require_known(texts: Samples, held_out: Sequence[Opening], num_tokens: int) -> None:
    """Raises for texts of tokens that the target does not have."""
    largest = max(int(texts.tokens.max()), *(max(opening.tokens) for opening in held_out))
    if largest >= num_tokens:
        raise ValueError(
            f"expected responses of the target's {num_tokens} tokens, got token {largest}; pass those that it wrote"
        )


def _openings(writing: ResponseConfig, files: HeadFiles, models: Models, config: HeadConfig) -> Callable[[], Openings]:
    """What makes the openings, once they are wanted."""
    if not writing.data and not writing.temperature:
        raise ValueError(
            "expected --data to be continued greedily, got none; from nothing the target writes one and the same text"
        )
    longest = min(config.sequence_length, paged(models.target).max_positions) - writing.response_length
    if longest < 1:
        raise ValueError(
            f"expected responses shorter than the --sequence-length of {config.sequence_length} and the target's "
            f"context, got {writing.response_length}; lower --response-length"
        )
    count = -(-writing.max_tokens // writing.response_length)
    options = OpeningOptions(count, max_length=longest, seed=writing.seed)
    if not writing.data:
        return lambda: openings_of_nothing(models.tokenizer, files.prompts, options)
    return lambda: read_openings(writing.data, models.tokenizer, options)


def _settled(config: HeadConfig, samples: Samples, target: Any) -> tuple[HeadConfig, list[int] | None]:
    """The config with what follows from the texts, and the tokens that the head may draft."""
    counts = samples.counts(logits_width_of(target) or target.config.vocab_size)
    if isinstance(config, BlockConfig) and config.mask_token_id is None:
        config = replace(config, mask_token_id=int(counts.argmin()))
    if isinstance(config, BlockConfig) and (config.mask_token_id or 0) >= (known := paged(target).num_embeddings):
        raise ValueError(f"expected --mask-token-id below {known}, got {config.mask_token_id}; leave it out")
    size: int | None = getattr(config, "draft_vocab_size", None)
    if size is None:
        return config, None
    if not 0 < size <= len(counts):
        raise ValueError(f"expected --draft-vocab-size from 1 to {len(counts)}, got {size}; leave it out for all")
    end = target.generation_config.eos_token_id
    return config, frequent_tokens(counts, size, end if isinstance(end, list) else [] if end is None else [end])
