"""The only table of names: drafters, rules, and which rule goes with which drafter."""

import copy
import difflib
import inspect
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from transformers import PreTrainedModel

from .checkpoints import load_model
from .draft_models.dflash import DFlash
from .draft_models.draft_model import DraftModel, pool_of
from .draft_models.eagle import Eagle
from .draft_models.eagle3 import Eagle3
from .draft_models.head_reading import Head, read_head
from .draft_models.medusa import Medusa
from .draft_models.mtp import Mtp
from .draft_models.ngram import NGram
from .draft_models.peagle import PEagle
from .draft_models.replay import Replay
from .probe import better_layers
from .protocols import Drafter, Verifier
from .target import Learned, PagedModel
from .types import Exactness
from .verifiers.block import Block
from .verifiers.greedy import Greedy
from .verifiers.rejection import Rejection
from .verifiers.sample_and_match import SampleAndMatch

# Self-draft heads: their `model` is a network that was trained for the target, not a language model.
HEADS: dict[str, Callable[..., Drafter]] = {
    "medusa": Medusa,
    "eagle": Eagle,
    "eagle3": Eagle3,
    "peagle": PEagle,
    "dflash": DFlash,
    "mtp": Mtp,
}
DRAFTERS: dict[str, Callable[..., Drafter]] = {"ngram": NGram, "draft_model": DraftModel, "replay": Replay, **HEADS}
VERIFIERS: dict[str, Callable[[], Verifier]] = {
    "greedy": Greedy,
    "sample_and_match": SampleAndMatch,
    "rejection": Rejection,
    "block": Block,
}
# Spellings of transformers -> ours, which are vLLM's.
OPTION_ALIASES = {
    "assistant_model": "model",
    "num_assistant_tokens": "num_speculative_tokens",
    "prompt_lookup_num_tokens": "num_speculative_tokens",
    "max_matching_ngram_size": "prompt_lookup_max",
    "assistant_confidence_threshold": "confidence_threshold",
}
# The check at load runs once in the life of a model, not once per call; entries vanish with their model.
_learned: weakref.WeakKeyDictionary[PreTrainedModel, Learned] = weakref.WeakKeyDictionary()
# So with the layers that heads were found to read: by path, and by the choices there were.
_Probed: TypeAlias = dict[tuple[str, tuple[tuple[int, ...], ...]], tuple[int, ...]]
_probed: weakref.WeakKeyDictionary[PreTrainedModel, _Probed] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Method:
    """A drafter and the rule that verifies it."""

    drafter: Drafter | None  # None: plain decoding
    verifier: Verifier

    @property
    def name(self) -> str:
        return "none" if self.drafter is None else self.drafter.name

    @property
    def level(self) -> Exactness:
        return self.verifier.level


def paged(model: PreTrainedModel, pool: str = "target", graphs: bool = False) -> PagedModel:
    """The model over pages, checked if this is the first time that it is seen."""
    wrapped = PagedModel(model, pool, learned=_learned.get(model), graphs=graphs)
    _learned[model] = wrapped.learned
    return wrapped


def load_drafter(path: str, target: PreTrainedModel | PagedModel, **options: Any) -> Drafter:
    """The drafter of a published head, ready for `generate(target, drafter=...)`.

    Recognised by config and tensors are heads in the formats of speculators, EAGLE-1 and 2, EAGLE-3, P-EAGLE, Medusa,
    DFlash and DSpark, and MTP modules, which lie in the checkpoint of their target. Which layers of the target a config
    means is tried, once, on short texts that the target draws; if those of the other way of counting are accepted far
    more often, they are used, with a warning. A mapping with a path for its `model` does the same, and reads the
    weights at every call; of the method "mtp" the path is that of the target unless another is named.

    Args:
        path: a folder or hub id.
        target: the model that the head was trained for; it lends what the head lacks.
        **options: of the drafter, as in its mapping: `num_speculative_tokens`, `num_tree_nodes`, ...

    Raises:
        ValueError: it is no head, none that can be run, damaged, or made for another target.

    Example:
        >>> import specdec, tempfile
        >>> from specdec.draft_models.head_writing import write_head
        >>> from specdec.draft_models.medusa import MedusaNetwork
        >>> target, _, tokenizer = specdec.load_embedded()
        >>> folder = tempfile.mkdtemp() + "/head"
        >>> network = MedusaNetwork(target.config, num_heads=2, has_outputs=False)
        >>> files = write_head(network, folder, "medusa", target.config)
        >>> drafter = specdec.load_drafter(folder, target, num_tree_nodes=6)
        >>> inputs = tokenizer("Once upon a time", return_tensors="pt")
        >>> specdec.generate(target, **inputs, drafter=drafter, max_new_tokens=8).shape
        torch.Size([1, 13])
    """
    paged_target = target if isinstance(target, PagedModel) else paged(target)
    return _with_head(load_head(path, paged_target), options, paged_target)


def load_head(path: str, target: PagedModel, method: str | None = None) -> Head:
    """A published head that reads the layers it was trained on."""
    head = read_head(path, target, method)
    if head.other_layers is None:
        return head
    choices = (head.network.feature_layers, head.other_layers)
    probed = _probed.setdefault(target.model, {})
    if (path, choices) not in probed:
        found = better_layers(lambda layers: _with_head(_reading(head, layers), {}, target), choices, target, path)
        probed[path, choices] = found
    return _reading(head, probed[path, choices])


def method_of(drafter: Any, verifier: Any, target: PagedModel, do_sample: bool) -> Method:
    """The method that these names, mappings or objects describe.

    Raises:
        ValueError: unknown name or option, or a rule that does not go with the drafter or the way of sampling.
    """
    built = build_drafter(drafter, target)
    needs = None if built is None else built.needs
    if verifier == "auto":
        verifier = _fitting_rule(built, do_sample)
    rule = VERIFIERS[known(verifier, VERIFIERS, "rule")]() if isinstance(verifier, str) else verifier
    if rule.level is Exactness.GREEDY_IDENTICAL and do_sample:
        raise ValueError(f"expected do_sample=False with the rule {rule.name!r}, got True; use verifier='auto'")
    if rule.chain_only and needs is not None and needs.tree:
        raise ValueError(f"expected a drafter of chains with the rule {rule.name!r}, got trees; use 'rejection'")
    return Method(built, rule)


def build_drafter(spec: Any, target: PagedModel) -> Drafter | None:
    """The drafter of a name, a mapping like vLLM's `speculative_config`, a model, or itself."""
    if spec is None or spec == "none":
        return None
    if isinstance(spec, str):
        spec = {"method": spec}
    if isinstance(spec, PreTrainedModel):
        spec = {"method": "draft_model", "model": spec}
    if not isinstance(spec, Mapping):
        if not hasattr(spec, "propose"):
            raise ValueError(f"expected a drafter as name, mapping, model or Drafter, got {type(spec).__name__}")
        built: Drafter = spec
    else:
        built = _from_mapping(spec, target)
    check = getattr(built, "check", None)
    if check is not None:
        check(target)
    return built


def _from_mapping(spec: Mapping[str, Any], target: PagedModel) -> Drafter:
    options = {OPTION_ALIASES.get(name, name): value for name, value in spec.items() if name != "method"}
    if len(options) != len(spec) - ("method" in spec):
        raise ValueError(f"expected each option once, got {sorted(spec)}; drop one of the spellings")
    method = spec.get("method", "draft_model" if "model" in options else None)
    if method is None:
        raise ValueError(f"expected 'method' in the mapping, got {sorted(spec)}; one of {', '.join(DRAFTERS)}")
    factory = DRAFTERS[known(method, DRAFTERS, "drafter")]
    parameters = inspect.signature(factory).parameters
    for name in options:
        known(name, parameters, f"option of {method}")
    if method == "mtp" and target.model.config.name_or_path:
        options.setdefault("model", target.model.config.name_or_path)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} for the drafter {method!r}, got {sorted(options)}; add it")
    if isinstance(options.get("model"), str) and method in HEADS:
        head = load_head(options.pop("model"), target, method)
        if head.method != method:
            raise ValueError(f"expected a head of the method {method!r}, got one of {head.method!r}; name that")
        return _with_head(head, options, target)
    if isinstance(options.get("model"), str):
        options["model"] = load_model(options["model"], target.dtype, target.device)
    if isinstance(options.get("model"), PreTrainedModel):
        model = options["model"]
        has_graphs = target.graphs is not None and model.device == target.device
        options["model"] = paged(model, pool_of(model), graphs=has_graphs)
    return factory(**options)


def _with_head(head: Head, options: Mapping[str, Any], target: PagedModel) -> Drafter:
    if not {"num_speculative_tokens", "speculative_token_tree"} & options.keys():
        if head.network.choices and "num_tree_nodes" not in options:
            options = {"speculative_token_tree": head.network.choices, **options}
        else:
            reach, proposed = head.network.depth, head.num_tokens
            tokens = min(proposed, reach) if proposed and reach else proposed
            options = {"num_speculative_tokens": tokens, **options}
    factory = HEADS[head.method]
    for name in options:
        known(name, inspect.signature(factory).parameters, f"option of {head.method}")
    built: Any = factory(head.network, **options)
    built.check(target)
    drafter: Drafter = built
    return drafter


def _reading(head: Head, layers: tuple[int, ...]) -> Head:
    """The same head, weights and all, reading these layers of the target."""
    network = copy.copy(head.network)
    network.feature_layers = layers
    return head._replace(network=network)


def _fitting_rule(drafter: Drafter | None, do_sample: bool) -> str:
    if not do_sample:
        return "greedy"
    if drafter is None or not drafter.needs.sampled:
        return "sample_and_match"
    return "rejection" if drafter.needs.tree else "block"


def known(name: str, table: Collection[str], what: str) -> str:
    """The name, if the table has it.

    Raises:
        ValueError: it has not; says the nearest name.

    Example:
        >>> known("grady", VERIFIERS, "rule")
        Traceback (most recent call last):
        ValueError: expected a known rule, got 'grady'; did you mean 'greedy'?
    """
    if name in table:
        return name
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(table)}"
    raise ValueError(f"expected a known {what}, got {name!r}; {hint}")
