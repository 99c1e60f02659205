"""One run: an arm generates the answers to a group of prompts, turn by turn, and says what it did."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from specdec.generation import Speculation, speculate
from specdec.methods import paged
from specdec.noise import request_seed

from ..contenders import ASSISTED, LOOKUP, assistant_settings
from ..conversations import Conversation
from ..differences import Choosing, first_difference
from ..measure import synchronize
from ..prompts import Prompt
from .arms import Arm, is_theirs, promises_same_text
from .recording import DIGITS, rounds_columns, steps_by_row, steps_columns
from .sweep import NAMED, SAMPLING
from .workbench import Workbench


@dataclass(frozen=True, slots=True)
class Member:
    """A prompt of a group, and its place in the sweep: the seed of its noise, whoever runs it beside whom."""

    prompt: Prompt
    index: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of generate over the rows of a turn."""

    seconds: float
    tokens: list[list[int]]  # new ones per row
    began: float  # perf_counter
    ended: list[float]  # of each round, perf_counter
    speculation: Speculation | None  # None for transformers' own


@dataclass(frozen=True, slots=True)
class Finished:
    """A run, the token ids each request was prompted with, and how its tokens were chosen."""

    record: dict[str, Any]
    inputs: dict[tuple[str, int], Tensor]  # (prompt, turn) -> [1, n]
    choosing: dict[str, Choosing]  # by prompt


class Runner:
    """Runs arms on one workbench. Models are left as they are found.

    Example:
        >>> from specdec.experiments.bench.arms import planned
        >>> from specdec.experiments.bench.sweep import sweep_of
        >>> from specdec.experiments.bench.workbench import workbench
        >>> from specdec.experiments.prompts import read_prompts
        >>> sweep = sweep_of({"drafter": "ngram", "num_speculative_tokens": 3})
        >>> bench = workbench(sweep, None, None)
        >>> arm = planned(sweep, lambda target: bench).arms[1]
        >>> record = Runner(bench).run(arm, [Member(read_prompts()[0], 0)], max_new_tokens=4).record
        >>> len(record["requests"][0]["tokens"]), record["requests"][0]["finish_reason"]
        (4, 'length')
    """

    def __init__(self, bench: Workbench, use_chat_template: bool | None = None) -> None:
        self.bench, self._model, self._use_chat_template = bench, bench.models.target, use_chat_template
        eos = self._model.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
        pad = bench.models.tokenizer.pad_token_id
        self._pad = pad if pad is not None else min(self._eos, default=0)

    def run(self, arm: Arm, members: Sequence[Member], max_new_tokens: int | None = None) -> Finished:
        """What the arm does with these prompts, together in one batch; its `difference` is not known yet."""
        talks = [self.talk(member) for member in members]
        record: dict[str, Any] = {"began": time.time(), "seconds": 0.0, "calls": [], "requests": []}
        inputs, memory = {}, []
        prompted = {row: ids for row, talk in enumerate(talks) if (ids := talk.next_input()) is not None}
        while prompted:
            rows, turn = list(prompted), len(record["calls"])
            self._reset_peak()
            call = self._called(arm, list(prompted.values()), [members[row].index for row in rows], max_new_tokens)
            memory.append(self._memory(arm, call))
            record["calls"].append(_call_columns(call))
            steps = None if call.speculation is None else steps_by_row(call.speculation.rounds, len(rows))
            for place, row in enumerate(rows):
                tokens = call.tokens[place]
                name = members[row].prompt.id
                inputs[name, turn] = prompted[row]
                about = {"prompt": name, "turn": turn, "num_prompt_tokens": prompted[row].shape[1], "tokens": tokens}
                own = None if steps is None else steps[place]
                is_ended = bool(tokens) and tokens[-1] in self._eos
                reason = list(own.values())[-1].finish_reason if own else "eos" if is_ended else "length"
                columns = None if own is None else steps_columns(own)
                record["requests"].append({**about, "finish_reason": reason, "steps": columns})
                talks[row].answer(tokens)
            prompted = {row: ids for row in rows if (ids := talks[row].next_input()) is not None}
        record["seconds"] = round(sum(call["seconds"] for call in record["calls"]), DIGITS)
        record["memory"] = {name: _most(each[name] for each in memory) for name in memory[0]}
        options = self.kwargs({**arm, "drafter": None})
        choosing = {each.prompt.id: Choosing(options, request_seed(arm["seed"], each.index)) for each in members}
        return Finished(record, inputs, choosing)

    def talk(self, member: Member) -> Conversation:
        """The conversation that a prompt begins."""
        return Conversation(member.prompt, self.bench.models, self._use_chat_template)

    def require_room(self, members: Sequence[Member], max_new_tokens: int) -> None:
        """Raises for a prompt whose turns, answered at full length, do not fit into the target's context."""
        context = paged(self._model).max_positions
        for member in members:
            talk = self.talk(member)
            while (ids := talk.next_input()) is not None:
                if ids.shape[1] + max_new_tokens > context:
                    raise ValueError(
                        f"expected prompt + new tokens within the context of {context}, got {ids.shape[1]} + "
                        f"{max_new_tokens} for {member.prompt.id!r}; lower --max-new-tokens or pass shorter --prompts"
                    )
                talk.answer([int(ids[0, -1])] * max_new_tokens)

    def _called(self, arm: Arm, prompted: Sequence[Tensor], indices: Sequence[int], max_new_tokens: int | None) -> Call:
        ids, mask = _left_padded(prompted, self._pad)
        seeds = [request_seed(arm["seed"], index) for index in indices]
        kwargs = {**self.kwargs(arm), **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})}
        ended: list[float] = []
        loop = None
        if not is_theirs(arm):
            spec = arm["drafter"]
            drafter = None if spec is None else self.bench.settled(spec).drafter
            loop = speculate(drafter, arm["verifier"], seeds, target=self.bench.target, on_round=_noting(ended))
            kwargs["custom_generate"] = loop
        lookup = arm["num_speculative_tokens"] if is_theirs(arm) else None
        model: Any = self._model
        device = self._model.device
        untouched = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with untouched, assistant_settings(self.bench.models.draft, lookup) if lookup else nullcontext():
            torch.manual_seed(seeds[0] % 2**63)
            synchronize(device)
            began = perf_counter()
            output = model.generate(ids, attention_mask=mask, **kwargs)
            synchronize(device)
            seconds = perf_counter() - began
        tokens = [self._cut(row) for row in output[:, ids.shape[1] :].tolist()]
        return Call(seconds, tokens, began, ended, None if loop is None else loop.last)

    def kwargs(self, arm: Arm) -> dict[str, Any]:
        """What `model.generate` is called with."""
        sampling = arm["sampling"]
        do_sample = sampling["temperature"] > 0
        kwargs = {"max_new_tokens": arm["max_new_tokens"], "do_sample": do_sample, "pad_token_id": self._pad}
        given = {name: sampling[name] for name in SAMPLING if sampling[name] is not None}
        if not do_sample:
            del given["temperature"]
        if is_theirs(arm) and arm["drafter"] is not None:
            if arm["drafter"][NAMED] == ASSISTED:
                given["assistant_model"] = self.bench.models.draft
            if arm["drafter"][NAMED] == LOOKUP:
                given["prompt_lookup_num_tokens"] = arm["num_speculative_tokens"]
        return {**kwargs, **given}

    def _cut(self, tokens: list[int]) -> list[int]:
        """Up to and including an end-of-text token; behind it is padding."""
        stop = next((place for place, token in enumerate(tokens, 1) if token in self._eos), len(tokens))
        return tokens[:stop]

    def _memory(self, arm: Arm, call: Call) -> dict[str, int | None]:
        held = None if call.speculation is None else call.speculation.kv_bytes
        drafter = None if held is None or arm["drafter"] is None else self.bench.settled(arm["drafter"]).drafter
        device = self._model.device
        return {
            "target_kv_bytes": None if held is None else held.get(self.bench.target.pool_name, 0),
            "drafter_kv_bytes": None if held is None else held.get(getattr(drafter, "pool", ""), 0),
            "device_peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }

    def _reset_peak(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._model.device)


def with_differences(bench: Workbench, arm: Arm, run: Finished, baseline: Finished) -> dict[str, Any]:
    """The record of a run with what parts its texts from the baseline's, if they are meant to be the same.

    A turn that the two were prompted with differently, since their earlier answers differ, is not compared.
    """
    if not promises_same_text(arm) or arm["id"] == arm["baseline"]:
        return run.record
    wanted = {(each["prompt"], each["turn"]): each["tokens"] for each in baseline.record["requests"]}
    requests = []
    for each in run.record["requests"]:
        key = each["prompt"], each["turn"]
        if key not in wanted or not torch.equal(run.inputs[key], baseline.inputs[key]):
            requests.append(each)
            continue
        texts, choosing = (wanted[key], each["tokens"]), run.choosing[each["prompt"]]
        found = first_difference(bench.models.target, each["prompt"], run.inputs[key], *texts, choosing)
        names = ("position", "expected", "got", "margin", "resolution", "is_tie")
        values = None if found is None else {name: getattr(found, name) for name in names}
        requests.append({**each, "difference": values})
    return {**run.record, "requests": requests}


def _noting(ended: list[float]) -> Any:
    return lambda event: ended.append(perf_counter())


def _call_columns(call: Call) -> dict[str, Any]:
    rounds = None
    if call.speculation is not None:
        rounds = rounds_columns(call.speculation.rounds, [each - call.began for each in call.ended])
    return {"seconds": round(call.seconds, DIGITS), "rounds": rounds}


def _left_padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:  # rows [1, n] -> [rows, longest] both
    width = max(row.shape[1] for row in rows)
    fill = torch.nn.functional.pad
    ids = [fill(row, (width - row.shape[1], 0), value=pad) for row in rows]
    masks = [fill(torch.ones_like(row), (width - row.shape[1], 0)) for row in rows]
    return torch.cat(ids), torch.cat(masks)


def _most(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return max(known, default=None)
