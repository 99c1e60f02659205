"""What a head in training loses: cross entropy with the target's distribution, and what would not be accepted."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST_ACCEPTANCE = 1e-4  # below, the acceptance-aware loss has no slope: cross entropy moves such rows
# Numbers in a chunk of rows: on a CPU as many as stay in a core's cache from one operation to the next, elsewhere as
# many as keep the device busy.
CHUNK = {"cpu": 1 << 18}
CHUNK_ELSEWHERE = 1 << 26


class Truth(NamedTuple):
    """What the target says at some rows, as far as the head can say it."""

    probs: Tensor  # [n, known], of the tokens that the head knows; a row sums to less than 1 if it lacks some
    best: Tensor  # [n] int64, the likeliest token's place among the known ones; -1 if it is not

    def at(self, rows: Tensor) -> "Truth":  # [m] int64
        """Of some of the rows."""
        return Truth(self.probs.index_select(0, rows), self.best.index_select(0, rows))


def truth_of(logits: Tensor, known: Tensor | None, temperature: float = 1.0) -> Truth:  # [n, vocab], [known] ascending
    """What logits of the target say to a head that knows these tokens; None for all.

    Example:
        >>> truth = truth_of(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]]), torch.tensor([0, 3]))
        >>> truth.probs[0].tolist(), truth.best.tolist()
        ([0.25, 0.25], [0, -1])
    """
    probs, best = [], []
    for part in _chunks(logits):
        scores = part.to(torch.promote_types(part.dtype, torch.float32))
        chunk = (scores if temperature == 1.0 else scores / temperature).softmax(-1)
        best.append(scores.max(-1).indices)
        probs.append(chunk if known is None else chunk.index_select(-1, known))
    likeliest = torch.cat(best)
    if known is None:
        return Truth(torch.cat(probs), likeliest)
    places = torch.searchsorted(known, likeliest).clamp_(max=len(known) - 1)
    return Truth(torch.cat(probs), torch.where(known[places] == likeliest, places, -1))


class RowLosses(NamedTuple):
    """What the logits of some rows are worth."""

    loss: Tensor  # [n]
    acceptance: Tensor  # [n]: how likely a token drawn from them is accepted, the sum of min(p, q) (2211.17192, 3.2)
    best: Tensor  # [n] int64: the likeliest token


def row_losses(logits: Tensor, truth: Truth, acceptance_weight: float) -> RowLosses:  # [n, known]
    """Cross entropy with the target, in which a row counts as much as the head knows of its mass; and, for a share,
    -log of the acceptance: it has the slope of 1 - acceptance, and is steeper where little is accepted (2602.23881).

    Example:
        >>> truth = Truth(torch.tensor([[0.5, 0.25]]), torch.tensor([0]))  # of a head that knows three quarters
        >>> losses = row_losses(torch.zeros(1, 2), truth, acceptance_weight=1.0)
        >>> losses.acceptance.item(), round(losses.loss.item(), 4)
        (0.75, 0.2877)
    """
    found: RowLosses = RowLosses(*_RowLosses.apply(logits, truth.probs, acceptance_weight))  # type: ignore[no-untyped-call]
    return found


class _RowLosses(torch.autograd.Function):
    """`row_losses` with its slope, chunk by chunk: nothing of the size of all logits is ever made but that slope."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, acceptance_weight: float) -> tuple[Tensor, Tensor, Tensor]:
        slope, parts = torch.empty_like(logits), []
        start = 0
        for chunk, p in zip(_chunks(logits), _chunks(probs), strict=True):
            scores = chunk.to(p.dtype)
            log_q = scores.log_softmax(-1)
            q = log_q.exp()
            entropy, accepted = -(p * log_q).sum(-1), torch.minimum(p, q).sum(-1)
            found = accepted.clamp_min(LEAST_ACCEPTANCE)
            parts.append((entropy.lerp(-found.log(), acceptance_weight), accepted, scores.max(-1).indices))
            # Of cross entropy: mass * q - p. Of -log acceptance, where q < p: -q / acceptance, centred as softmax does.
            change = (q * p.sum(-1, keepdim=True) - p) * (1 - acceptance_weight)
            if acceptance_weight:
                below = q * (p - q).sign_().clamp_(min=0)
                share = torch.where(accepted > LEAST_ACCEPTANCE, acceptance_weight / found, 0.0)[:, None]
                change += (q * below.sum(-1, keepdim=True) - below) * share
            slope[start : start + len(chunk)] = change
            start += len(chunk)
        ctx.save_for_backward(slope)
        loss, accepted, best = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(accepted, best)
        return loss, accepted, best

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_others: Any) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient[:, None].to(slope.dtype), None, None


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:  # [n, size]
    size = CHUNK.get(rows.device.type, CHUNK_ELSEWHERE)
    parts: tuple[Tensor, ...] = rows.split(max(1, size // rows.shape[-1]))
    return parts


def sequence_weights(is_counted: Tensor) -> Tensor:  # [b, t] bool -> [b, t] float32
    """Weights that sum to 1: every text with counted rows weighs the same, whatever its length (algorithms.md 4.14).

    Example:
        >>> sequence_weights(torch.tensor([[True, True], [False, True], [False, False]])).tolist()
        [[0.25, 0.25], [0.0, 0.5], [0.0, 0.0]]
    """
    counts = is_counted.sum(-1, keepdim=True)
    weights = is_counted / counts.clamp_min(1)
    return weights / (counts > 0).sum().clamp_min(1)


class Tally:
    """Collects the losses of the depths of a head, the nearest first.

    Args:
        decay: what a depth weighs, compared with the one above.
        acceptance_weight: see `row_losses`.

    Example:
        >>> tally, truth = Tally(0.5, 0.0), Truth(torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
        >>> near = tally.add(torch.tensor([[0.0, 0.0]]), truth, torch.ones(1))
        >>> far = tally.add(torch.tensor([[0.0, 1.0]]), truth, torch.ones(1))
        >>> round(float(tally.loss), 3), tally.agreement.tolist()
        (0.567, [0.0, 1.0])
    """

    def __init__(self, decay: float, acceptance_weight: float) -> None:
        self._decay, self._acceptance_weight = decay, acceptance_weight
        self._losses: list[Tensor] = []
        self.matches: list[Tensor] = []  # [n] bool each: whether the likeliest token was the target's
        self._weights: list[Tensor] = []

    def add(self, logits: Tensor, truth: Truth, weights: Tensor) -> RowLosses:  # [n, known], n rows, [n]
        """One more depth."""
        found = row_losses(logits, truth, self._acceptance_weight)
        self._losses.append((found.loss * weights).sum())
        self.matches.append(found.best == truth.best)
        self._weights.append(weights)
        return found

    @property
    def loss(self) -> Tensor:
        """The weighted mean over the depths."""
        shares = torch.tensor([self._decay**depth for depth in range(len(self._losses))])
        losses = torch.stack(self._losses)
        return (losses * (shares / shares.sum()).to(losses.device)).sum()

    @property
    def agreement(self) -> Tensor:  # [depths]
        """How often the head's likeliest token was the target's, per depth, given the text so far."""
        sums = [(match * weight).sum() for match, weight in zip(self.matches, self._weights, strict=True)]
        return torch.stack(sums) / torch.stack([weight.sum() for weight in self._weights]).clamp_min(1e-9)


def expected_tokens(matches: Tensor, is_anchor: Tensor) -> Tensor:  # [anchors, depths] bool, [anchors] bool -> []
    """Tokens per step of greedy chains from these rows, the next token included: all that match up to the first that
    does not.

    Example:
        >>> expected_tokens(torch.tensor([[True, False, True], [True, True, True]]), torch.tensor([True, True])).item()
        3.0
    """
    run = matches.long().cumprod(-1).sum(-1).float()
    return 1 + (run * is_anchor).sum() / is_anchor.sum().clamp_min(1)
