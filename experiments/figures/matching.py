"""Which arms and prompts of two result sets are the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .columns import Run

Arm = Mapping[str, Any]
NAMES = ("id", "label", "cell", "baseline")  # of an arm: follow from its settings, and are none themselves


@dataclass(frozen=True, slots=True)
class Match:
    """An arm of one set and its partner in the other."""

    arm_a: Arm
    arm_b: Arm
    difference: Mapping[str, list[Any]]  # the one setting in which they differ, with both values; empty if none


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names.

    Example:
        >>> flat({"seed": 0, "sampling": {"top_p": 0.9}})
        {'seed': 0, 'sampling.top_p': 0.9}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return found


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings in which two differ, by dotted names, with both values.

    Example:
        >>> differing({"seed": 0, "dtype": "float32"}, {"seed": 1, "dtype": "float32"})
        {'seed': [0, 1]}
    """
    a, b = flat(first), flat(second)
    return {name: [a.get(name), b.get(name)] for name in dict.fromkeys((*a, *b)) if a.get(name) != b.get(name)}


def matched(arms_a: Sequence[Arm], arms_b: Sequence[Arm]) -> tuple[list[Match], list[str], list[str]]:
    """Arms of equal id, then those of equal label that differ in one setting; and the labels left over in each set.

    Example:
        >>> slow = {"id": "1", "label": "ngram k=5", "dtype": "float32", "seed": 0}
        >>> fast = slow | {"id": "2", "dtype": "bfloat16"}
        >>> matched([slow], [fast])[0][0].difference, matched([slow], [fast | {"seed": 1}])[1]
        ({'dtype': ['float32', 'bfloat16']}, ['ngram k=5'])
    """
    by_id = {arm["id"]: arm for arm in arms_b}
    found = [Match(arm, by_id[arm["id"]], {}) for arm in arms_a if arm["id"] in by_id]
    taken = {match.arm_a["id"] for match in found}
    used = set(taken)
    for arm in arms_a:
        partners = [other for other in arms_b if other["label"] == arm["label"] and other["id"] not in used]
        near = [(other, settings) for other in partners if len(settings := _settings(arm, other)) <= 1]
        if arm["id"] not in taken and len(near) == 1:
            found.append(Match(arm, *near[0]))
            taken.add(arm["id"])
            used.add(near[0][0]["id"])
    only_a = [arm["label"] for arm in arms_a if arm["id"] not in taken]
    return found, only_a, [arm["label"] for arm in arms_b if arm["id"] not in used]


def _settings(arm: Arm, other: Arm) -> dict[str, list[Any]]:
    a, b = ({name: value for name, value in each.items() if name not in NAMES} for each in (arm, other))
    return differing(a, b)


def shared_prompts(
    header_a: Mapping[str, Any], records_a: Sequence[Run], header_b: Mapping[str, Any], records_b: Sequence[Run]
) -> tuple[list[str], list[str]]:
    """The prompts of both sets, equally long in both, and notes on the others."""
    names_a, names_b = ([prompt["id"] for prompt in header["prompts"]] for header in (header_a, header_b))
    common = [name for name in names_a if name in set(names_b)]
    sizes_a, sizes_b = _sizes(records_a), _sizes(records_b)
    other = {name for name in common if sizes_a.get(name) and sizes_b.get(name) and sizes_a[name] != sizes_b[name]}
    notes = []
    if other:
        notes.append(f"{len(other)} prompts have the same name and another length, and are left out")
    shared = [name for name in common if name not in other]
    alone = len(set(names_a) | set(names_b)) - len(common)
    if not shared:
        notes.append("not comparable: the sets have no prompts in common")
    elif alone:
        notes.append(f"{len(shared)} prompts are in both sets and count; {alone} are in one only")
    return shared, notes


def _sizes(records: Sequence[Run]) -> dict[str, set[int]]:
    """The lengths, in tokens, of each prompt's first turn."""
    found: dict[str, set[int]] = {}
    for run in records:
        for request in run["requests"]:
            if request["turn"] == 0:
                found.setdefault(request["prompt"], set()).add(request["num_prompt_tokens"])
    return found
