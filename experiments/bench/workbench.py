"""The models of a sweep at work: one target in one dtype, and every drafter for it, each built once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from specdec.checkpoints import load_model
from specdec.draft_models.draft_options import tree_choices
from specdec.draft_models.head_reading import Head
from specdec.methods import DRAFTERS, HEADS, build_drafter, known, load_head, paged
from specdec.protocols import Drafter
from specdec.target import PagedModel
from specdec.zoo import FOLDER

from ..contenders import ASSISTED, BASELINE, LOOKUP, OURS, TREE, VARIANTS
from ..loading import EMBEDDED, Models, load_models
from .sweep import NAMED, Sweep

THEIRS = (BASELINE, ASSISTED, LOOKUP)  # transformers' own
SHIPPED = f"{EMBEDDED}/"  # begins the names of embedded heads and the draft model in results


@dataclass(frozen=True, slots=True)
class Settled:
    """A drafter's mapping with every name resolved, and the drafter it makes; no drafter for transformers' own."""

    name: str
    spec: dict[str, Any]  # plain values
    drafter: Drafter | None = None
    note: str | None = None  # how it differs from what was asked for


@dataclass(frozen=True, slots=True)
class Workbench:
    """A target over pages, shared by all arms, and what drafts for it.

    Example:
        >>> from specdec.experiments.bench.sweep import sweep_of
        >>> bench = workbench(sweep_of({}), None, None)
        >>> sorted(bench.names())[:3]
        ['assisted', 'block', 'block tree']
        >>> found = bench.settled({"method": "block", "num_speculative_tokens": 99})
        >>> found.name, found.spec["num_speculative_tokens"] < 99, found.note is not None
        ('block', True, True)
    """

    models: Models
    target: PagedModel
    _heads: dict[str, Head] = field(default_factory=dict)  # by path; drafters share their weights
    _drafts: dict[str, PreTrainedModel] = field(default_factory=dict)
    _settled: dict[str, Settled] = field(default_factory=dict)

    def names(self) -> dict[str, dict[str, Any]]:
        """What a drafter may be called -> its mapping; an unknown name of a table is a method of the toolkit."""
        table: dict[str, dict[str, Any]] = {"ngram": {NAMED: "ngram"}, BASELINE: {NAMED: BASELINE}}
        table |= {name.removeprefix(f"{BASELINE} "): {NAMED: name} for name in (ASSISTED, LOOKUP)}
        drafts = {"draft_model": {NAMED: "draft_model"}, **VARIANTS}
        table |= drafts
        for name in self.models.heads:
            table |= {name: {NAMED: name}, f"{name} tree": {NAMED: name, **TREE}}
        if self.models.draft is None:
            for name in (*drafts, ASSISTED.removeprefix(f"{BASELINE} ")):
                del table[name]
        return table

    def settled(self, spec: Mapping[str, Any]) -> Settled:
        """The drafter of a mapping.

        Raises:
            ValueError: a name or option is unknown, or means nothing here.
        """
        key = json.dumps(spec, sort_keys=True, default=str)
        if key not in self._settled:
            try:
                self._settled[key] = self._settle(dict(spec))
            except TypeError as error:  # of numbers and strings in each other's place, as a table may have them
                raise ValueError(f"expected options of a drafter, got {dict(spec)}: {error}; correct them") from error
        return self._settled[key]

    def _settle(self, spec: dict[str, Any]) -> Settled:
        method = str(spec[NAMED])
        if method in THEIRS:
            return self._settled_theirs(method, spec)
        if method in self.models.heads or method in HEADS:
            return self._settled_head(method, spec)
        known(method, [*self.names(), *DRAFTERS], "drafter")
        name = method
        if spec.get("speculative_token_tree") is not None:
            spec["num_speculative_tokens"] = _depth_of(spec)
        options = dict(spec)
        if method == "draft_model":
            path = spec.get("model", self.models.draft_name)
            if path is None:
                raise ValueError(f"expected a draft model for {method!r}, got none; pass --draft FOLDER")
            is_given = path == self.models.draft_name or (path, self.models.draft_name) == (f"{SHIPPED}draft", EMBEDDED)
            options["model"] = self.models.draft if is_given else self._draft(path)
            name = method if is_given else f"{method} {Path(path).name}"
            spec["model"] = f"{SHIPPED}draft" if path == EMBEDDED else path
        return Settled(name, spec, build_drafter(options, self.target))

    def _settled_theirs(self, method: str, spec: dict[str, Any]) -> Settled:
        allowed = () if method == BASELINE else ("num_speculative_tokens",)
        for name in spec.keys() - {NAMED, "verifier"}:
            known(name, allowed, f"option of {method}")
        if method == ASSISTED:
            if self.models.draft is None:
                raise ValueError(f"expected a draft model for {method!r}, got none; pass --draft FOLDER")
            spec["model"] = f"{SHIPPED}draft" if self.models.draft_name == EMBEDDED else self.models.draft_name
        return Settled(method, spec)

    def _settled_head(self, name: str, spec: dict[str, Any]) -> Settled:
        """A head that cannot draft so many tokens drafts what it can."""
        given = spec.pop("model", None) or self.models.heads.get(name)
        if given is None:
            raise ValueError(f"expected a head for {name!r}, got none; pass --head FOLDER, or model = FOLDER")
        path = _found(given)
        if path not in self._heads:
            self._heads[path] = load_head(path, self.target)
        head, note = self._heads[path], None
        if name in HEADS and name not in self.models.heads and head.method != name:
            raise ValueError(f"expected a head of the method {name!r}, got one of {head.method!r}; name that")
        if spec.get("speculative_token_tree") is not None:
            spec["num_speculative_tokens"] = _depth_of(spec)
        reach, wanted = head.network.depth, spec["num_speculative_tokens"]
        if reach and wanted > reach and "speculative_token_tree" not in spec:
            spec["num_speculative_tokens"] = reach
            note = f"{name} k={wanted}: it drafts {reach} tokens at most, so it is measured as k={reach}"
        options = {**spec, NAMED: head.method, "model": head.network}
        is_shipped = Path(path).parent == FOLDER / "heads"
        spec |= {NAMED: head.method, "model": f"{SHIPPED}{Path(path).name}" if is_shipped else path}
        return Settled(Path(path).name, spec, build_drafter(options, self.target), note)

    def _draft(self, path: str) -> PreTrainedModel:
        if path not in self._drafts:
            self._drafts[path] = load_model(path, self.target.dtype, self.target.device)
        return self._drafts[path]


def workbench(sweep: Sweep, target: str | None, dtype: str | None, device: str | None = None) -> Workbench:
    """The models of one target and dtype of a sweep, loaded."""
    place = sweep.device or (None if sweep.spread else device)
    models = load_models(target, sweep.draft, dtype, place, sweep.head, sweep.spread)
    graphs = models.is_on_gpu and not sweep.spread if sweep.graphs is None else sweep.graphs
    return Workbench(models, paged(models.target, graphs=graphs))


def short_name(name: str) -> str:
    """A contender's name without whose it is.

    Example:
        >>> short_name("specdec ngram"), short_name("transformers assisted"), short_name("transformers")
        ('ngram', 'assisted', 'transformers')
    """
    return name.removeprefix(f"{OURS} ").removeprefix(f"{BASELINE} ")


def _found(head: str) -> str:
    return str(FOLDER / "heads" / head.removeprefix(SHIPPED)) if head.startswith(SHIPPED) else head


def _depth_of(spec: Mapping[str, Any]) -> int:
    return max(map(len, tree_choices(spec["speculative_token_tree"])))
