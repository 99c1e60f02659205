"""Text a model writes itself, to distil a draft model on what the target will really say."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track

from .corpus import TokenStore


@dataclass(frozen=True, slots=True)
class SelfTextConfig:
    """How much to write and how. Lengths in tokens."""

    max_tokens: int = 1_500_000
    batch_size: int = 128
    prompt_lengths: tuple[int, ...] = (8, 24, 64, 128)
    new_tokens: int = 192
    temperatures: tuple[float, ...] = (0.0, 0.0, 0.7, 1.0)  # 0: greedy
    seed: int = 0


@torch.inference_mode()
def write_self_text(model: Any, store: TokenStore, config: SelfTextConfig) -> TokenStore:
    """Continuations by `model` of training windows of each domain; held-out text stays that of `store`."""
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    parts: dict[str, list[np.ndarray[Any, np.dtype[np.uint16]]]] = {domain: [] for domain in store.train}
    tokens_per_batch = config.batch_size * config.new_tokens
    num_batches = max(len(parts), config.max_tokens // tokens_per_batch)
    for index in track(range(num_batches), "writing"):
        domain = list(parts)[index % len(parts)]
        length = config.prompt_lengths[index // len(parts) % len(config.prompt_lengths)]
        temperature = config.temperatures[int(rng.integers(len(config.temperatures)))]
        prompts = store.batch({domain: 1.0}, config.batch_size, length - 1, rng)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        written = model.generate(
            prompts.to(model.device),
            attention_mask=torch.ones_like(prompts, device=model.device),
            max_new_tokens=config.new_tokens,
            min_new_tokens=config.new_tokens,
            **sampling,
        )
        parts[domain].append(written.cpu().numpy().astype(np.uint16).reshape(-1))
    return TokenStore({domain: np.concatenate(part) for domain, part in parts.items()}, store.held_out)
