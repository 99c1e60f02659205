"""The optimizer of heads, which are trained in the precision they will run in."""

from math import cos, pi

import torch
from torch import Tensor, nn

from specdec.draft_models.head_network import HeadNetwork

from .head_recipe import HeadConfig

BETAS = (0.9, 0.95)
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
MAX_NORM = 1.0  # of the gradients


def rate_at(step: int, num_steps: int, warmup_share: float) -> float:
    """Share of the full learning rate: a warm-up, then half a cosine down to nothing.

    Example:
        >>> [round(rate_at(step, 10, 0.2), 2) for step in range(10)]
        [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    warmup = max(1, round(num_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * cos(pi * (step - warmup) / max(1, num_steps - warmup))


class HeadOptimizer:
    """Muon for the matrices of the layers, AdamW for the rest, both on copies of the parameters in float32 at least: a
    bfloat16 weight would not move by small steps.

    Args:
        network: what is trained.
        config: how.

    Example:
        >>> from transformers import PretrainedConfig
        >>> from specdec.draft_models.medusa import MedusaNetwork
        >>> network = MedusaNetwork(PretrainedConfig(hidden_size=8, vocab_size=32), num_heads=2).bfloat16()
        >>> optimizer = HeadOptimizer(network, HeadConfig())
        >>> network(torch.ones(8).bfloat16()).float().sum().backward()
        >>> optimizer.step(rate=1.0), sorted(optimizer.state())[-2:]
        (None, ['weight.medusa_head.1.0.linear.weight', 'weight.medusa_head.1.1.weight'])
    """

    def __init__(self, network: HeadNetwork, config: HeadConfig) -> None:
        self._parameters = dict(network.named_parameters())
        self._masters = {
            name: nn.Parameter(p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True))
            for name, p in self._parameters.items()
        }
        matrices = [p for p in self._masters.values() if p.ndim == 2 and not _vocabularies(network) & {*p.shape}]
        others = [p for p in self._masters.values() if all(p is not matrix for matrix in matrices)]
        muon = torch.optim.Muon(matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, betas=BETAS, weight_decay=0.0)
        self._optimizers = [(muon, config.learning_rate), (adamw, config.adamw_rate)]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step along the gradients, which are then forgotten.

        Args:
            rate: share of the learning rates.
        """
        for name, parameter in self._parameters.items():
            gradient, parameter.grad = parameter.grad, None
            master = self._masters[name]
            master.grad = None if gradient is None else gradient.to(master.dtype)
        torch.nn.utils.clip_grad_norm_(self._masters.values(), MAX_NORM)
        for optimizer, base in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = base * rate
            optimizer.step()
        self._hand_over()

    def state(self) -> dict[str, Tensor]:
        """Everything that a later run needs to go on: parameters, moments, numbers of steps."""
        state = {f"weight.{name}": master.detach() for name, master in self._masters.items()}
        for optimizer, _ in self._optimizers:
            for name, master in self._masters.items():
                state |= {f"{key}.{name}": value for key, value in optimizer.state.get(master, {}).items()}
        return state

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from such a state."""
        for name, master in self._masters.items():
            master.copy_(state[f"weight.{name}"])
        for optimizer, _ in self._optimizers:
            for group in optimizer.param_groups:
                for master in group["params"]:
                    optimizer.state[master] = self._moments(master, state)
        self._hand_over()

    def _moments(self, master: nn.Parameter, state: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name, other in self._masters.items() if other is master)
        found = {key: state[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in state}
        return {key: value if key == "step" else value.to(master.device) for key, value in found.items()}

    def _hand_over(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._masters[name])


def _vocabularies(network: HeadNetwork) -> set[int]:
    """Sizes by which a matrix is known as one of embeddings or outputs, whose rows are tokens."""
    sizes = {network.config.vocab_size}
    return sizes if network.d2t is None else {*sizes, len(network.d2t)}
