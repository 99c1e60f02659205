"""A Hugging Face decoder, unpatched, that keeps its K and V in our cache and scores trees of many requests at once."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import selfcheck
from .anatomy import (
    attention_configs,
    hooked,
    inferring,
    logits_of,
    logits_width_of,
    max_positions_of,
    modules_of,
    only_gpu_of,
    options_of,
)
from .attention import NAME, NAME_COMPILED, AttentionStep, Call, LayerPlan, Running, running_now
from .cache import PagedKVCache, PageTable
from .capture import Replayed
from .chunk import Chunk, Inputs, Packed, Packer, Scores, inputs_ahead, inputs_of, step_inputs
from .graphs import GraphReport, Graphs, Output

__all__ = ["Chunk", "PagedModel", "Scores"]  # the first and the last are made in chunk.py

MODELESS = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.ModuleList)  # they infer as they train


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of a model that passed the check: how wide its logits are, and how its layers attend."""

    vocab_size: int
    plans: dict[Call, LayerPlan]  # by attention module; never the model itself
    options: tuple[bool, bool]  # whether its forward takes logits_to_keep, and keywords of ours


class PagedModel:
    """A decoder whose K and V live in one pool of a `PagedKVCache`.

    The model is left as it is found: its weights, hooks, training modes and attention implementation. Hooks for
    `feature_layers` stay until `close`, or the end of a `with` block. Hooks of the caller's see token ids and positions
    in memory that the next pass writes anew: copy what is to be kept.

    Args:
        model: a decoder of transformers whose attention goes through its attention interface; also compiled,
            `torch.compile(model, dynamic=True)`, for our passes then, whose numbers differ in the last places.
        pool: the name of the pool.
        feature_layers: layers whose outputs `score` also returns; 0 is the first.
        check: whether to compare a short tree with plain forward passes before the model is used.
        learned: what another `PagedModel` of the same model learned; the check is not made again.
        graphs: whether forward passes of a bucketed shape are captured as CUDA graphs and replayed, see `graphs`.
            For a model on one GPU whose weights stay where they are; it brings a `cache` along, since graphs are bound
            to its storage.

    Raises:
        ValueError: the model cannot be run this way; the message says why.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from specdec.tree import TokenTree
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> model, cache = PagedModel(LlamaForCausalLM(config)), PagedKVCache()
        >>> table = cache.open()
        >>> tree = TokenTree([5, 7, 9], [-1, 0, 0])  # two guesses at what follows token 5
        >>> cache.stage(table, len(tree))
        >>> model.score(cache, [Chunk(table, 0, tree, num_logits=3)]).logits.shape
        torch.Size([3, 32])
    """

    cache: PagedKVCache | None = None  # that `generate` uses; None for a new one each time. May be set.
    replayed: Replayed | None = None  # what is launched around the captured passes
    graphs: Graphs | None = None  # if it has some, once the model is known to work
    _is_running = False  # with our attention
    _taps: dict[int, Tensor] | None = None  # layer -> output, while a forward of ours is running

    def __init__(
        self,
        model: PreTrainedModel,
        pool: str = "target",
        feature_layers: Sequence[int] = (),
        check: bool = True,
        learned: Learned | None = None,
        graphs: bool = False,
    ) -> None:
        self._call, model = model, getattr(model, "_orig_mod", model)  # what torch.compile wraps is looked at as it is
        if learned is None:
            selfcheck.require_supported(model)
        self.model, self.pool_name, self.feature_layers = model, pool, tuple(feature_layers)
        self.max_positions = max_positions_of(model)
        width = logits_width_of(model)
        self.vocab_size = width or model.config.get_text_config(decoder=True).vocab_size  # width of the logits
        self._embeddings = model.get_input_embeddings()
        self._embedding: Tensor = self._embeddings.weight  # type: ignore[assignment]
        self.num_embeddings: int = self._embedding.shape[0]  # ids it can be given; logits may be of another width
        modules = modules_of(model)
        self._modules = [module for module in modules if type(module) not in MODELESS]
        self._configs = attention_configs(modules)
        self._keeps_logits, self._takes_step = learned.options if learned is not None else options_of(model)
        self._plans: dict[Call, LayerPlan] = {}
        self._packer = Packer(self.device)
        self._now = Running()
        self._hooks = hooked(model, set(self.feature_layers), self._keep)
        if learned is not None:
            self._plans = learned.plans
            if width is None:
                self.vocab_size = learned.vocab_size  # else as it is now: embeddings may have been resized
        elif check:
            try:
                self.vocab_size = selfcheck.compare(self.plain, self.score, model, pool)
            except BaseException:
                self.close()
                raise
        if graphs:
            self.graphs, self.cache, self.replayed = Graphs(only_gpu_of(model)), PagedKVCache(), Replayed()

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        hook = self._embeddings.__dict__.get("_hf_hook")  # accelerate: weights may be elsewhere until they are used
        device = getattr(hook, "execution_device", None)
        return self._embedding.device if device is None else torch.device(device)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in."""
        return self.model.dtype

    @property
    def learned(self) -> Learned:
        """For the next `PagedModel` of this model."""
        return Learned(self.vocab_size, self._plans, (self._keeps_logits, self._takes_step))

    @property
    def graph_report(self) -> GraphReport | None:
        """What capturing has cost and saved; None without graphs."""
        return None if self.graphs is None else self.graphs.report

    @property
    def layer_keys(self) -> list[int]:
        """The keys of this model's layers in its pool, in the order they run; layers that share K and V count once."""
        return [plan.key for plan in self._plans.values() if plan.is_writer]

    def score(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Scores:
        """Logits after the wanted nodes, features after all. Rows must be staged; afterwards the pool holds them.

        In inference mode and with graphs the logits are good until the next pass.
        """
        logits, taps = self._passed(cache, inputs_of(cache, chunks))
        for chunk in chunks:
            chunk.table.filled[self.pool_name] = chunk.start + len(chunk.tree)
        features = [taps[layer][0].to(logits.device) for layer in self.feature_layers]
        if not any(chunk.num_logits for chunk in chunks):
            logits = logits[:0]
        return Scores(logits, torch.cat(features, -1) if features else None)

    def step(
        self, cache: PagedKVCache, tables: Sequence[PageTable], rows: Sequence[int], tokens: Sequence[int]
    ) -> Tensor:
        """Logits [b, vocab] after one more row per request: `tokens[i]` at row `rows[i]` of `tables[i]`, behind all
        rows before it. What `score` gives for chunks of one node, with less beside the forward pass."""
        logits, _ = self._passed(cache, step_inputs(cache, tables, rows, tokens))
        for table, row in zip(tables, rows, strict=True):
            table.filled[self.pool_name] = row + 1
        return logits

    def chain(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> list[list[int]] | None:
        """The `count` likeliest tokens behind each chunk, by one graph, see `Graphs.chain`; None without graphs."""
        if (graphs := self._graphs_over(cache)) is None:
            return None
        run, given, ahead = partial(self._run, cache), inputs_of(cache, chunks), inputs_ahead(cache, chunks, count - 1)
        drafted = graphs.chain((run, run), given, ahead, count, self.num_embeddings - 1)
        if drafted is not None:
            for chunk in chunks:
                chunk.table.filled[self.pool_name] = chunk.start + len(chunk.tree) + count - 1
        return drafted

    def _passed(self, cache: PagedKVCache, given: Inputs) -> Output:
        if (graphs := self._graphs_over(cache)) is not None:
            passed = graphs.run(partial(self._run, cache), given, self.feature_layers)
            if passed is not None:
                logits, taps = passed
                return logits if torch.is_inference_mode_enabled() else logits.clone(), taps
        return self._run(cache, self._packer_here().pack(given))

    def _graphs_over(self, cache: PagedKVCache) -> Graphs | None:
        if self.graphs is not None:
            self.graphs.bind(cache.pool(self.pool_name), self._embedding.data_ptr())
        return self.graphs

    def _packer_here(self) -> Packer:
        if not self._is_running and self._packer.device != (device := self.device):  # the model was moved
            self._packer = Packer(device)
        return self._packer

    def _run(self, cache: PagedKVCache, packed: Packed) -> Output:
        """Logits [rows kept, vocab], and the outputs [1, rows, hidden] of the feature layers."""
        step = AttentionStep(cache.pool(self.pool_name), packed, self._plans or {})
        options: dict[str, Any] = {"specdec_step": step} if self._takes_step else {}
        if self._keeps_logits:
            options["logits_to_keep"] = packed.keep
        if self._is_running:
            output, taps = self._forward(packed, step, options)
        else:
            with self.running():
                output, taps = self._forward(packed, step, options)
        self._plans = step.plans
        if not self._plans:
            raise selfcheck.refusal(self.model, "its attention does not go through that interface")
        logits = logits_of(output)[0]
        if not self._keeps_logits:
            logits = _kept(logits, packed.keep)
        if not torch.is_inference_mode_enabled():
            logits = logits.clone()  # an inference tensor may not be changed in place later on, as processors do
        return logits, taps

    def _forward(self, packed: Packed, step: AttentionStep, options: dict[str, Any]) -> tuple[Any, dict[int, Tensor]]:
        self._now.step = step
        taps = self._taps = {}
        try:
            output = self._call(input_ids=packed.tokens, position_ids=packed.positions, use_cache=False, **options)
        finally:
            self._taps = None
            del self._now.step  # it holds the pool
        return output, taps

    def plain(self, tokens: Tensor) -> Tensor:  # [b, t] -> [b, t, vocab]
        """Logits of an ordinary forward pass without a cache, by the model's own attention."""
        with self._inferring():
            return logits_of(self.model(input_ids=tokens.to(self.device), use_cache=False))

    def close(self) -> None:
        """Takes the hooks off the model and frees its graphs and its heads'. It can still score, without features."""
        if self.graphs is not None:
            self.graphs.clear()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.feature_layers = [], ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def running(self) -> AbstractContextManager[None]:
        """While inside, the model infers with our attention. `score` enters by itself; around several it saves time.

        Logits of scores inside are inference tensors, for reading only.
        """
        if self._is_running:
            return nullcontext()
        return self._inferring(NAME if self._call is self.model else NAME_COMPILED)

    @contextmanager
    def _inferring(self, attention: str | None = None) -> Iterator[None]:
        """While inside, the model is in evaluation mode, records nothing for gradients and runs with this attention."""
        self._packer_here()
        token = running_now.set(self._now)
        try:
            with inferring(self._modules, self._configs, attention):
                self._is_running = attention is not None
                yield
        finally:
            running_now.reset(token)
            self._is_running = False

    @contextmanager
    def tapped(self, layers: Sequence[int]) -> Iterator[None]:
        """While inside, `score` returns the outputs of these layers as features."""
        found = self.feature_layers
        hooks = hooked(self.model, set(layers) - set(found), self._keep)
        try:
            self.feature_layers = tuple(layers)
            yield
        finally:
            self.feature_layers = found
            for hook in hooks:
                hook.remove()

    def _keep(self, layer: int, output: Tensor) -> None:
        if self._taps is not None:
            self._taps[layer] = output


def _kept(rows: Tensor, keep: Tensor | int) -> Tensor:  # [T, ...] -> [R, ...]
    """What `logits_to_keep` means."""
    return rows[-keep:] if isinstance(keep, int) else rows.index_select(0, keep.to(rows.device))
