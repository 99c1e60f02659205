"""Whether a model can be run over the cache: what is known by name, then a short tree scored both ways."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .cache import PagedKVCache
from .chunk import Chunk, Scores
from .tree import TokenTree

# Layers that keep a state which cannot be cut back, or choose keys by an index of their own.
FOREIGN_LAYERS = ("linear", "mamba", "recurrent", "conv", "hybrid", "rwkv", "ssm", "indexed", "sparse", "compressed")
# Size of the difference over that of the logits, each row's mean taken away. The worst third of rows does not count:
# rounding may send a row to another expert, which changes it whole. Sums are made in another order, and many models
# compute norms, rotations and softmax in float32 whatever their dtype, so float64 ones agree to float32 only; TF32 is
# why float32 has room. A wrong key in a mask gives 0.02 (trained) to 1 (random weights), rounding 0.03 at most in
# bfloat16 (eps 0.008) and 0.007 in float16, over the families of the tests.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 2e-3, torch.float16: 0.02, torch.bfloat16: 0.06}
PROMPT_ROWS, TWIN_ROWS = 9, 5  # of two requests in one pass
MAX_WINDOW = 4096  # longest sliding window whose edge is checked ...
MAX_WORK = 10**11  # ... if parameters times rows, four passes of them, are no more: seconds on a CPU
FORWARD_ERRORS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def refusal(model: PreTrainedModel, reason: str) -> ValueError:
    """The error that says why a model cannot be run."""
    return ValueError(
        f"expected a decoder whose attention goes through transformers' attention interface; "
        f"got {model.config.model_type} ({reason}); use model.generate for it"
    )


def require_supported(model: PreTrainedModel) -> None:
    """Refuses what is known not to work before anything is run.

    Raises:
        ValueError: encoder-decoder, recurrent or hybrid layers, or ALiBi.
    """
    config = model.config
    text = config.get_text_config(decoder=True)
    if getattr(config, "is_encoder_decoder", False):
        raise refusal(model, "encoder-decoder")
    kinds = [*(getattr(text, "layer_types", None) or ()), *(getattr(text, "layers_block_type", None) or ())]
    foreign = sorted({kind for kind in kinds if any(word in kind for word in FOREIGN_LAYERS)})
    if foreign:
        raise refusal(model, f"{', '.join(foreign)} layers, whose state cannot be cut back")
    if getattr(model, "_is_stateful", False):
        raise refusal(model, "recurrent, its state cannot be cut back")
    has_alibi = text.model_type == "bloom" or getattr(text, "alibi", False)
    if has_alibi or getattr(getattr(text, "attn_config", None), "alibi", False):
        raise refusal(model, "ALiBi inside attention")
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise refusal(model, f"{type(model).__name__} has no language model head")


def compare(
    plain: Callable[[Tensor], Tensor],
    score: Callable[[PagedKVCache, Sequence[Chunk]], Scores],
    model: PreTrainedModel,
    pool: str,
) -> int:
    """The width of the logits, after a prefill, a branching tree, a commit and a decode agreed with plain passes.

        request 1:  prompt - r - a - c - x - y - z      scored plainly as two rows of a batch;
                             \\ b - d - e - f - g      over the cache as prompt, tree (r a b c d), commit (r b d), e f g
        request 2:  the prompt's first tokens, packed beside it

    Raises:
        ValueError: the model does not pass.
    """
    try:
        errors, width = _errors(plain, score, model, pool)
    except torch.OutOfMemoryError:
        raise
    except FORWARD_ERRORS as error:
        raise refusal(model, _first_line(error)) from error
    for phase, (size, tolerance) in errors.items():
        if not size <= tolerance:  # NaN does not pass
            reason = f"logits after {phase} differ from a plain forward pass by {size:.2g} of their size"
            raise refusal(model, f"{reason}, allowed {tolerance:g}")
    return width


def _errors(
    plain: Callable[[Tensor], Tensor],
    score: Callable[[PagedKVCache, Sequence[Chunk]], Scores],
    model: PreTrainedModel,
    pool: str,
) -> tuple[dict[str, tuple[float, float]], int]:
    """Phase -> (error, tolerance), and the width of the logits."""
    length, vocab_size = _prompt_rows(model), model.config.get_text_config(decoder=True).vocab_size
    ids = [5 + 7919 * i % max(1, min(vocab_size - 5, 997)) for i in range(length + 8)]  # low ids, never an image's
    prompt, (r, a, b, c, d, *rest) = ids[:length], ids[length:]
    want = plain(torch.tensor([[*prompt, r, a, c, *rest], [*prompt, r, b, d, *rest]]))
    tree = TokenTree([r, a, b, c, d], [-1, 0, 0, 1, 2])
    cache = PagedKVCache(page_size=4)  # small: after the first pass the pages of request 1 are not consecutive
    one, two = cache.open(), cache.open()
    steps = {
        "prefill": [Chunk(one, 0, TokenTree.chain(prompt), num_logits=3), _chain(two, prompt[:TWIN_ROWS])],
        "a tree": [Chunk(one, length, tree, num_logits=5), _chain(two, [prompt[TWIN_ROWS]], TWIN_ROWS)],
        "a commit": [_chain(one, rest, length + 3)],
    }
    expected = {
        "prefill": torch.cat([want[0, length - 3 : length], want[0, :TWIN_ROWS]]),
        "a tree": torch.stack([want[0, length], *want[:, length + 1], *want[:, length + 2], want[0, TWIN_ROWS]]),
        "a commit": want[1, length + 3 :],
    }
    accepted = {"prefill": list(range(1, length)), "a tree": [2, 4], "a commit": [1, 2]}
    errors = {}
    for phase, chunks in steps.items():
        for chunk in chunks:
            cache.stage(chunk.table, len(chunk.tree))
        got = score(cache, chunks).logits
        errors[phase] = (_difference(got, expected[phase]), TOLERANCES.get(got.dtype, TOLERANCES[torch.bfloat16]))
        for chunk in chunks:
            path = accepted[phase] if chunk.table is one else list(range(1, len(chunk.tree)))
            cache.commit(chunk.table, path, chunk.tree.tokens_at([0, *path]), pool)
    return errors, want.shape[-1]


def _chain(table: Any, tokens: list[int], start: int = 0) -> Chunk:
    return Chunk(table, start, TokenTree.chain(tokens), num_logits=len(tokens))


def _prompt_rows(model: PreTrainedModel) -> int:
    """Enough to go past the longest sliding window or chunk, where that is cheap."""
    text = model.config.get_text_config(decoder=True)
    sizes = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    limit = min(MAX_WINDOW, MAX_WORK // max(1, sum(p.numel() for p in model.parameters())))
    return max(PROMPT_ROWS, *(size + 3 if size and size <= limit else 0 for size in sizes))


def _difference(got: Tensor, want: Tensor) -> float:  # [r, vocab] both
    """Size of the difference over that of `want`, each row's mean taken away: the largest but for the worst third."""
    got, want = got.double(), want.to(device=got.device, dtype=torch.float64)
    got, want = got - got.mean(-1, keepdim=True), want - want.mean(-1, keepdim=True)
    sizes: list[float] = ((got - want).norm(dim=-1) / want.norm(dim=-1)).tolist()
    return sorted(sizes, key=lambda size: (size != size, size))[len(sizes) - 1 - len(sizes) // 3]  # NaN is the worst


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"its forward pass fails with {type(error).__name__}: {lines[0] if lines else 'no message'}"
