"""Events as columns of plain values: what a record keeps of rounds and steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from specdec.events import Round, Seconds, Step
from specdec.tree import TokenTree

DIGITS = 7  # of seconds: a tenth of a microsecond


def rounds_columns(rounds: Sequence[Round], ended: Sequence[float]) -> dict[str, list[Any]]:
    """The rounds of one call; `ended` are seconds since the call began.

    Example:
        >>> rounds_columns([Round((), Seconds(draft=0.25), num_rows=3, is_prefill=True)], [0.5])["draft"]
        [0.25]
    """
    parts = {name: [round(getattr(each.seconds, name), DIGITS) for each in rounds] for name in _PARTS}
    return {
        "ended": [round(each, DIGITS) for each in ended],
        **parts,
        "num_rows": [each.num_rows for each in rounds],
        "is_prefill": [each.is_prefill for each in rounds],
    }


def steps_by_row(rounds: Sequence[Round], num_rows: int) -> list[dict[int, Step]]:
    """Per row of a batch, its steps by the index of their round."""
    found: list[dict[int, Step]] = [{} for _ in range(num_rows)]
    for index, each in enumerate(rounds):
        for step in each.steps:
            found[step.request_id][index] = step
    return found


def steps_columns(steps: Mapping[int, Step]) -> dict[str, list[Any]]:
    """The steps of one request. `ranks` and `offered` are there if some draft was no chain.

    Example:
        >>> tree = TokenTree([5, 7, 8, 9], [-1, 0, 0, 2])  # pending 5, then 7 or 8, and 9 after 8
        >>> step = Step(0, (8, 9, 3), num_accepted=2, num_drafted=2, num_nodes=3, tree=tree, path=(2, 3))
        >>> columns = steps_columns({4: step})
        >>> columns["round"], columns["emitted"], columns["ranks"], columns["offered"]
        ([4], [3], [[1, 0]], [[2, 1, 0]])
    """
    listed = list(steps.values())
    columns: dict[str, list[Any]] = {
        "round": list(steps),
        "emitted": [len(step.tokens) for step in listed],
        "accepted": [step.num_accepted for step in listed],
        "drafted": [step.num_drafted for step in listed],
        "nodes": [step.num_nodes for step in listed],
        "wasted": [step.num_wasted for step in listed],
        "source": [step.source for step in listed],
    }
    if any(step.num_nodes != step.num_drafted for step in listed):
        trees = [(step.tree or TokenTree.chain([0]), step.path) for step in listed]
        columns["ranks"] = [[_rank(tree, node) for node in path] for tree, path in trees]
        columns["offered"] = [[tree.parents.count(node) for node in (0, *path)] for tree, path in trees]
    return columns


def _rank(tree: TokenTree, node: int) -> int:
    """Which of its siblings a node is, in draw order."""
    return tree.parents[:node].count(tree.parents[node])


_PARTS = tuple(Seconds.__dataclass_fields__)
