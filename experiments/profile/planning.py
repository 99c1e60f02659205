"""A plan from what there is: a profile, acceptance that is known or measured here, and a check by live runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec.methods import paged
from specdec.protocols import Drafter

from ..loading import Models
from ..prompts import first_per_category, read_prompts
from .acceptance import Acceptance, Known, measured
from .check import Texts, chosen, live
from .cost import Costs, Yield, predict
from .drafters import Setting, drafters_of
from .plan import plan, predictions_of

Row = dict[str, Any]
OnRun = Callable[[int, int, str], None]
SAME = ("target", "dtype", "device")  # of a profile's model and the one that is run


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan is made for."""

    batch_sizes: Sequence[int] | None = None  # None: those of the profile; only the first of them is checked
    context_length: int | None = None  # None: that of the live runs, else the shortest of the profile
    num_prompts: int = 2  # per task, of live runs
    num_tokens: int = 48
    repeats: int = 3
    has_check: bool = False


class Live:
    """The models of a profile, to run."""

    def __init__(self, models: Models, profile: Mapping[str, Any], wanted: Wanted) -> None:
        here, there = models.as_dict(), profile["model"]
        for name in SAME:
            if here[name] != there[name]:
                raise ValueError(
                    f"expected the {name} of the profile, {there[name]!r}, got {here[name]!r}; pass --{name}, or "
                    "measure a new profile"
                )
        self.models, self.wanted, self.costs = models, wanted, Costs.of(profile)
        self.target = paged(models.target, graphs=profile["settings"]["graphs"])
        prompts = [
            models.encode(prompt.text)[0].tolist() for prompt in first_per_category(read_prompts(), wanted.num_prompts)
        ]
        self.texts = Texts(prompts, wanted.num_tokens)
        if max(map(len, prompts)) + 2 * wanted.num_tokens > self.target.max_positions:
            raise ValueError(
                f"expected prompts of {max(map(len, prompts))} tokens and twice {wanted.num_tokens} new ones within "
                f"the context of {self.target.max_positions}; lower --max-new-tokens"
            )

    def acceptance(self, on_run: OnRun) -> Known:
        """Of all drafters of the profile."""
        return measured(self.target, self._drafters(()), *self.texts, on_run)

    def check(self, acceptance: Acceptance, context: float, on_run: OnRun) -> list[Row]:
        """Predictions beside live runs."""
        batches = self.wanted.batch_sizes or self.costs.passes.batches[:1]
        rows = []
        for found in predictions_of(self.costs, acceptance, batches, context):
            ways = chosen(found)
            settings = [way.setting for way in ways if way.setting is not None]
            drafters = self._drafters([setting.num_speculative_tokens for setting in settings])
            missing = next((setting for setting in settings if setting not in drafters), None)
            if missing is not None:
                raise ValueError(
                    f"expected the drafters of the profile, got no {missing.label}; pass --draft or --head"
                )
            rows += live(self.target, ways, drafters, self.texts, self.wanted.repeats, on_run)
        return rows

    def _drafters(self, lengths: Sequence[int]) -> dict[Setting, Drafter]:
        """Those of the profile at these lengths and at their longest, and their trees."""
        settings = self.costs.settings()
        longest = max(setting.num_speculative_tokens for setting in settings)
        nodes = next((setting.num_tree_nodes for setting in settings if setting.num_tree_nodes is not None), None)
        return drafters_of(self.models, self.target, [*lengths, longest], nodes)


def check_profile(profile: Mapping[str, Any]) -> None:
    """Raises ValueError if nothing could be predicted from it: a file that says it is one may be of another program.

    Example:
        >>> check_profile({"model": {}})
        Traceback (most recent call last):
        ...
        ValueError: expected the fields of a profile, got none that fits: KeyError 'environment'; measure it anew
    """
    try:
        _, _, settings = (dict(profile[name]) for name in ("model", "environment", "settings"))
        costs, context = Costs.of(profile), float(min(settings["context_lengths"]))
        batch, _ = costs.passes.batches[0], settings["graphs"]
        speeds = [predict(costs, each, batch, context, Yield(2.0, 0.5)).speedup for each in costs.settings()]
        if not speeds or min(speeds) <= 0:
            raise ValueError("times that are none")
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"expected the fields of a profile, got none that fits: {type(error).__name__} {error}; measure it anew"
        ) from error


def make_plan(
    profile: Mapping[str, Any], acceptance: Acceptance | None, models: Models | None, wanted: Wanted, on_run: OnRun
) -> Row:
    """The plan, with the rows of a check if one is wanted.

    Args:
        acceptance: None to measure it.
        models: needed for that, and for a check.
    """
    check_profile(profile)
    session = None if models is None else Live(models, profile, wanted)
    if acceptance is None:
        assert session is not None, "acceptance is measured by running the models"
        acceptance = session.acceptance(on_run)
    context: float = min(profile["settings"]["context_lengths"])
    if wanted.context_length is not None or session is not None:
        context = wanted.context_length or (session.texts.context if session is not None else context)
    found = plan(profile, acceptance, wanted.batch_sizes, context)
    if wanted.has_check:
        assert session is not None, "a check runs the models"
        found["check"] = session.check(acceptance, context, on_run)
    return found
