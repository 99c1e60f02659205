"""Traces: what a drafter proposes at every position of a text, and what the target says there.

A rule that accepts nothing makes the engine go through a text token by token. Features, caches and processors are those
of any other run, so the draft at a position is the one that a live run makes when a round begins there. That takes
drafters whose proposals are a function of the text, as `protocols.Drafter` demands.

Drawn drafts would be others every time. Their noise is replaced by one that draws the text itself: then p and q stand
along the text at every start and depth, and the law of what a rule that uses q accepts follows (`laws`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from specdec.generation import generate
from specdec.kernels.ops import argmax
from specdec.methods import build_drafter
from specdec.noise import request_seed
from specdec.protocols import Drafter, Noise, RequestView
from specdec.target import PagedModel
from specdec.types import Draft, Exactness, TargetRows, Verdict

from .schema import KINDS, table_of

OnText = Callable[[int, int, str], None]  # told how many texts are done, of how many, and by which drafter
# Drafters that say how sure they are of the tokens of a chain only if they are to stop where they are not.
TELLING = ("draft_model", "eagle", "eagle3", "mtp", "medusa", "peagle")
NEVER = 1e-30  # a threshold that no drafted token is below
SETTINGS = (
    "num_speculative_tokens",
    "num_tree_nodes",
    "tree_width",
    "speculative_token_tree",
    "draft_sample_method",
    "confidence_threshold",
    "num_branches",
)


@dataclass(frozen=True, slots=True)
class Tracing:
    """How texts are made and what is kept of them."""

    generate: Mapping[str, Any] = field(default_factory=dict)  # options of `specdec.generate`: max_new_tokens, ...
    # One per prompt, as in `Speculation.seeds`; of one number those of its rows are made.
    seeds: int | Sequence[int] = 0
    top_m: int = 16  # likeliest tokens of p and q that are kept; the vocabulary's size keeps all
    places: Sequence[tuple[int, int]] | None = None  # request and turn of each prompt; None counts requests
    on_text: OnText | None = None

    def seed_of(self, index: int) -> int:
        return request_seed(self.seeds, index) if isinstance(self.seeds, int) else self.seeds[index]


class Forced:
    """Noise whose draft draws are the tokens of a text; behind its end, and for everything else, those of `noise`.

    Example:
        >>> from specdec.noise import PhiloxNoise
        >>> noise = Forced(PhiloxNoise(0), [5, 7, 9])
        >>> noise.draft_token(torch.ones(12), start=2, node=0, draw=0)  # the text's third token
        9
    """

    def __init__(self, noise: Noise, tokens: Sequence[int]) -> None:
        self._noise, self._tokens = noise, tokens
        self.target_tokens, self.coupled_tokens = noise.target_tokens, noise.coupled_tokens
        self.accept, self.residual_token = noise.accept, noise.residual_token

    def draft_token(self, probs: Tensor, start: int, node: int, draw: int) -> int:
        """The token at position start + node, whatever its probability."""
        place = start + node
        if place < len(self._tokens):
            return self._tokens[place]
        return self._noise.draft_token(probs, start, node, draw)


class ForcedDrafter:
    """A drafter whose draws are the tokens of a text, prompt included."""

    def __init__(self, drafter: Drafter, tokens: Sequence[int]) -> None:
        self._drafter, self._tokens = drafter, tokens
        self.name, self.needs, self.close = drafter.name, drafter.needs, drafter.close

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """Its proposals if chance had made the text."""
        return self._drafter.propose(views, budgets, [Forced(noise, self._tokens) for noise in noises])


class Recorder:
    """A rule that accepts nothing and keeps everything, for one text.

    Args:
        prompt_length: tokens of the prompt.
        tokens: new tokens of the text, if it is known; else it is the target's own.
        top_m: likeliest tokens to keep.
    """

    name: ClassVar[str] = "trace"
    level: ClassVar[Exactness] = Exactness.PATHWISE
    chain_only: ClassVar[bool] = False

    def __init__(self, prompt_length: int, tokens: Sequence[int] | None, top_m: int) -> None:
        self._prompt_length, self._tokens, self._top_m = prompt_length, tokens, top_m
        self.columns: dict[str, list[Any]] = {name: [] for name in KINDS}
        self.num_differences = 0  # places where the known text is not what the target says

    def verify(self, draft: Draft, rows: TargetRows, noise: Noise) -> Verdict:
        """The next token of the text alone."""
        if rows.is_greedy:
            targets: Sequence[int] = argmax(rows.scores).tolist()
        else:
            targets = noise.target_tokens(rows.scores, rows.positions)
        token = targets[0]
        if self._tokens is not None:
            place = rows.start - self._prompt_length
            if place >= len(self._tokens):
                raise ValueError(
                    f"expected texts that end where the options end them, got one of {len(self._tokens)} tokens that "
                    "goes on; trace with the options that it was generated with"
                )
            token = self._tokens[place]
            self.num_differences += token != targets[0]
        self._keep(draft, rows, targets)
        return Verdict([], token)

    def _keep(self, draft: Draft, rows: TargetRows, targets: Sequence[int]) -> None:
        tree, probs = draft.tree, rows.scores.softmax(-1)
        if any(draft.sampled) and not tree.is_chain:
            raise ValueError(
                "expected drawn chains or trees of chosen nodes to trace, got a drawn tree, whose siblings were drawn "
                "from what others left; drop num_tree_nodes or draft_sample_method='probabilistic'"
            )
        count = len(tree)
        self._add("position", [rows.start] * count)
        self._add("node", range(count))
        self._add("parent", tree.parents)
        self._add("depth", tree.depths)
        self._add("token", tree.tokens)
        self._add("is_sampled", draft.sampled)
        self._add("score", [None] * count if draft.scores is None else draft.scores.tolist())
        self._add("source", [draft.source] * count)
        self._add("p_token", _own(probs, draft))
        self._add("target_token", targets)
        self._add_tops("p", probs, [True] * count)
        has_q = [*draft.sampled[1:], False]  # of a chain: by the child
        q = None if draft.probs is None or not any(has_q) else draft.probs.to(probs.device)
        own = [None] * count if q is None else _own(q, draft)
        self._add("q_token", [value if is_drawn else None for value, is_drawn in zip(own, draft.sampled, strict=True)])
        self._add_tops("q", q, has_q)

    def _add_tops(self, which: str, probs: Tensor | None, kept: Sequence[bool]) -> None:
        names = f"{which}_top_tokens", f"{which}_top_probs", f"{which}_tail"
        if probs is None:
            for name in names:
                self._add(name, [None] * len(kept))
            return
        best = probs.topk(min(self._top_m, probs.shape[-1]))
        is_cut = self._top_m < probs.shape[-1]
        left = (1 - best.values.sum(-1)).clamp_min(0) if is_cut else best.values.new_zeros(len(kept))
        for name, values in zip(names, (best.indices, best.values, left), strict=True):
            self._add(name, [value if is_kept else None for value, is_kept in zip(values.tolist(), kept, strict=True)])

    def _add(self, name: str, values: Sequence[Any]) -> None:
        self.columns[name].extend(values)

    def finish(self, tokens: Sequence[int], request: int, turn: int) -> None:
        """Adds what is known only with the whole text, its new tokens."""
        columns, end = self.columns, len(tokens)
        size = len(columns["node"])
        columns["request"], columns["turn"] = [request] * size, [turn] * size
        nodes = zip(*(columns[name] for name in ("position", "node", "parent", "depth", "token")), strict=True)
        first = 0
        for row, (position, node, parent, depth, token) in enumerate(nodes):
            first = row if node == 0 else first
            place = position - self._prompt_length + depth
            columns["text_token"].append(tokens[place] if place < end else -1)
            is_said = node > 0 and place <= end and token == tokens[place - 1]
            columns["is_accepted"].append(is_said and (parent == 0 or columns["is_accepted"][first + parent]))


def trace_arm(
    target: PagedModel,
    drafter: Any,
    verifier_name: str,
    tracing: Tracing,
    prompts: Sequence[Tensor],
    texts: Sequence[Sequence[int]] | None = None,
) -> Any:
    """A table of what one arm drafts at every position of its texts; see `schema` for its columns.

    Args:
        target: whose text it is.
        drafter: as `specdec.generate` takes it.
        verifier_name: the rule of the live run, which is what a replay answers for unless asked otherwise.
        tracing: how texts are made and what is kept.
        prompts: [1, length] or [length] token ids each, without padding; one after the other.
        texts: new tokens of each, those of plain decoding with the same seeds; None generates them.

    Raises:
        ValueError: the drafter draws trees, or a text does not end where the options end it.

    Example:
        >>> import specdec
        >>> target, _, tokenizer = specdec.load_embedded()
        >>> prompt = tokenizer("def f(x):", return_tensors="pt")["input_ids"]
        >>> options = Tracing({"max_new_tokens": 4, "do_sample": False})
        >>> trace_arm(PagedModel(target), "ngram", "greedy", options, [prompt]).column("depth").to_pylist()
        [0, 0, 0, 0]
    """
    built = build_drafter(telling(drafter), target)
    if built is None:
        raise ValueError("expected a drafter to trace, got none; plain decoding has nothing to replay")
    columns: dict[str, list[Any]] = {name: [] for name in KINDS}
    num_differences = 0
    for index, prompt in enumerate(prompts):
        if tracing.on_text is not None:
            tracing.on_text(index, len(prompts), built.name)
        text = None if texts is None else texts[index]
        recorder = _recorded(target, built, prompt.reshape(1, -1).to(target.device), text, tracing, index)
        num_differences += recorder.num_differences
        for name, values in recorder.columns.items():
            columns[name].extend(values)
    about = {
        "drafter_name": built.name,
        "settings": {name: None if value == NEVER else _plain(value) for name, value in _settings(built).items()},
        "is_tree": built.needs.tree,
        "verifier": verifier_name,
        "sampling": {name: _plain(value) for name, value in tracing.generate.items()},
        "do_sample": bool(tracing.generate.get("do_sample")),
        "seeds": [tracing.seed_of(index) for index in range(len(prompts))],
        "vocab_size": target.vocab_size,
        "top_m": tracing.top_m,
        "num_differences": num_differences,  # places where the given texts are not what the target says here
    }
    return table_of(columns, about)


def _recorded(
    target: PagedModel, drafter: Drafter, prompt: Tensor, text: Sequence[int] | None, tracing: Tracing, index: int
) -> Recorder:
    """What happened along one text, that of plain decoding if none is given."""
    options = {**tracing.generate, "seed": [tracing.seed_of(index)], "attention_mask": torch.ones_like(prompt)}
    length = prompt.shape[1]
    if text is None and drafter.needs.sampled and options.get("do_sample"):
        text = generate(target, prompt, **options)[0, length:].tolist()
    used = drafter
    if text is not None and drafter.needs.sampled:
        used = ForcedDrafter(drafter, [*prompt[0].tolist(), *text])
    recorder = Recorder(length, text, tracing.top_m)
    said: list[int] = generate(target, prompt, drafter=used, verifier=recorder, **options)[0, length:].tolist()
    if text is not None and said != list(text):
        raise ValueError(
            f"expected texts that end where the options end them, got one of {len(text)} tokens that ends after "
            f"{len(said)}; trace with the options that it was generated with"
        )
    recorder.finish(said, *((index, 0) if tracing.places is None else tracing.places[index]))
    return recorder


def telling(drafter: Any) -> Any:
    """The same drafter; if it is described as one of chains without a q, it says how likely it held their tokens.

    Example:
        >>> telling({"method": "eagle3", "model": "head"})["confidence_threshold"] == NEVER, telling("ngram")
        (True, 'ngram')
    """
    if not isinstance(drafter, Mapping) or "assistant_confidence_threshold" in drafter:
        return drafter
    is_chain = drafter.get("num_tree_nodes") is None and drafter.get("speculative_token_tree") is None
    is_chosen = drafter.get("draft_sample_method") != "probabilistic"
    if drafter.get("method", "draft_model") not in TELLING or not is_chain or not is_chosen:
        return drafter
    return {"confidence_threshold": NEVER, **drafter}


def _own(probs: Tensor, draft: Draft) -> list[float | None]:  # [n, vocab] -> [n]
    """The probability of each node's token in its parent's row."""
    if len(draft) == 1:
        return [None]
    found: list[float] = probs[draft.tree.parents[1:], draft.tree.tokens[1:]].tolist()
    return [None, *found]


def _settings(drafter: Drafter) -> dict[str, Any]:
    return {name: getattr(drafter, name, None) for name in SETTINGS}


def _plain(value: Any) -> Any:
    """The value as JSON knows it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else str(value)
