"""Whether two models can have the same tokens."""

from typing import Any

# Vocabularies of one family differ by at most so much of the smaller, which is padding (151936 and 152064 in Qwen2.5,
# 50257 and 51200 in GPT-2 and its heirs).
PADDING_SHARE = 0.02


def check_vocabulary(target_size: int, draft_size: int, tokenizers: tuple[Any, Any] | None = None) -> None:
    """Nothing if a draft model of `draft_size` rows of logits can have the target's vocabulary.

    Models of one family may differ in columns of logits that only pad the vocabulary. Those the target does not have
    are cut off before the draft's softmax, and tokens that only the target has are drafted when no other is possible.
    With the tokenizers (target's, draft's) at hand the tokens are compared, otherwise sizes further apart than padding
    are refused.

    Raises:
        ValueError: the vocabularies differ.

    Example:
        >>> check_vocabulary(152064, 151936)  # Qwen2.5 7B and 0.5B
        >>> check_vocabulary(4096, 512)
        Traceback (most recent call last):
        ValueError: expected a draft model with the target's vocabulary of 4096 tokens, got 512; take one of its family
    """
    if tokenizers is not None:
        target, draft = (tokenizer.get_vocab() for tokenizer in tokenizers)
        num_different = len(target.items() ^ draft.items())
        if num_different:
            raise ValueError(
                f"expected a draft model with the target's tokens, got a vocabulary in which {num_different} entries "
                "differ; take one of its family"
            )
    elif abs(target_size - draft_size) > PADDING_SHARE * min(target_size, draft_size):
        raise ValueError(
            f"expected a draft model with the target's vocabulary of {target_size} tokens, got {draft_size}; "
            "take one of its family"
        )
