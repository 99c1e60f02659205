"""What a target costs here: prompts, decoding, wider passes and drafts, beside what the machine could do at most."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from specdec.methods import paged
from specdec.target import PagedModel

from ..loading import Models
from ..stamp import environment
from .cost import PassTable
from .counting import ModelCounts, Rows, counts_of
from .drafters import drafters_of
from .machine import Machine, measure_machine
from .passes import Bench, Case, OnRun, by_width, order_of, run_cases, run_prompts, run_theirs
from .roofline import point
from .running import Lap, Spread, pass_seconds
from .settings import Settings, text_of

Row = dict[str, Any]
UNSTEADY = 1.3  # ends of the interval of a median, one over the other
DEFINITIONS = {
    "seconds": "median by the clock on the wall; seconds_low, seconds_high: its 95 % interval by order statistics; of "
    "fewer than six times the least and the greatest, which hold it less often",
    "prefill": "ttft_seconds: from the prompt to the first new token, one request, nothing of it in the cache",
    "decode": "a round of plain decoding: one token for each request of the batch",
    "verify": "a round whose target pass has `width` rows of each request: pass_seconds is the forward pass (on a GPU "
    "with the rule, in which it is waited for), overhead_seconds the rest: rule, cache, host. ratio: T(width) / T(1)",
    "draft": "seconds: one call of the drafter for all requests of the batch. overhead_seconds: rule, cache and host "
    "of its rounds. slowdown: time of the target's pass behind a draft / of one as wide without a drafter, as the "
    "drafter's weights take the place of the target's in caches",
    "flops, bytes": "counted from parameters and config, not measured: linear layers, attention over visible rows and "
    "logits; weights once per pass, K and V once per request. Of experts, as many as an even routing touches",
    "roofline_seconds": "max(flops / peak, bytes / bandwidth); roofline_share: of it in the time measured. Weights "
    "that a cache holds are read faster than memory, so that the share may be above 1",
    "peak_flops": "of the fastest product of square matrices in the model's dtype",
    "bandwidth_bytes_per_second": "of reading memory; cached_bandwidth: of reading as many bytes as the weights take",
    "transformers_seconds": "its own forward pass with its own cache, on the same tokens, for reference",
}


class Subject(NamedTuple):
    """What is profiled."""

    bench: Bench
    counts: ModelCounts
    machine: Machine
    is_on_gpu: bool


def profile(models: Models, settings: Settings, graphs: bool, on_run: OnRun, text: Sequence[int] | None = None) -> Row:
    """The profile as plain values for JSON.

    Args:
        text: tokens that are continued; None for the prompts that come with the package.

    Raises:
        ValueError: the context of the target is too short for the settings.
    """
    target = paged(models.target, graphs=graphs)
    settings.check(target.max_positions)
    counts = counts_of(models.target)
    on_run(0, 1, "the machine")
    machine = measure_machine(target.device, target.dtype, counts.weight_bytes)
    drafters = drafters_of(models, target, settings.draft_lengths, settings.num_tree_nodes)
    bench = Bench(target, text_of(models) if text is None else text, drafters, settings.all_widths)
    subject = Subject(bench, counts, machine, models.is_on_gpu)
    prompts = run_prompts(bench, settings.prompt_lengths, settings.repeats + 1, on_run)
    order = order_of(settings, drafters)
    cases = list(dict.fromkeys(case for case, _ in order))
    plain = sorted(case for case in cases if case.is_plain)
    passes = sorted(case for case in cases if case.setting is None and not case.is_plain)
    laps, theirs = run_cases(bench, order, settings.repeats, on_run), run_theirs(bench, plain, settings.repeats)
    verify = [row for case in passes for row in _verify_rows(subject, case, by_width(laps[case]))]
    decode = [_decode_row(subject, case, laps[case], theirs[case]) for case in plain]
    table = PassTable.of(verify)
    return {
        "kind": "profile",
        "version": 1,
        "environment": environment(),
        "definitions": DEFINITIONS,
        "warnings": list(_warnings(decode)),
        "settings": {**settings.as_dict(), "graphs": graphs},
        "model": _model_row(models, target, counts, settings),
        "machine": machine.as_dict(),
        "prefill": [_prefill_row(subject, length, found) for length, found in prompts.items()],
        "decode": decode,
        "verify": verify,
        "draft": [_draft_row(case, laps[case], table, subject) for case in cases if case.setting is not None],
    }


def _warnings(rows: Sequence[Row]) -> Iterator[str]:
    """Where times say little."""
    for row in rows:
        low, high = row["seconds_low"], row["seconds_high"]
        if high > UNSTEADY * low:
            where = f"batch {row['batch_size']}, context {row['context_length']}"
            yield (
                f"a plain step takes {1e3 * low:.1f} to {1e3 * high:.1f} ms at {where}: something else kept the "
                "machine busy; measure again, or raise --repeats"
            )


def _model_row(models: Models, target: PagedModel, counts: ModelCounts, settings: Settings) -> Row:
    contexts = settings.context_lengths
    sparse = None if counts.experts is None else {"count": counts.experts.count, "active": counts.experts.active}
    return {
        **models.as_dict(),
        "max_positions": target.max_positions,
        "weight_bytes": counts.weight_bytes,
        "kv_bytes_per_token": counts.kv_bytes,
        "kv_bytes_at_context": {str(length): counts.kv_bytes_at(length) for length in contexts},
        "flops_per_token": counts.row_flops + counts.logit_flops,
        "experts": sparse,
    }


def _prefill_row(subject: Subject, length: int, found: Mapping[str, Sequence[float]]) -> Row:
    spread = Spread.of(found["specdec"])
    return {
        "prompt_length": length,
        "batch_size": 1,
        "ttft_seconds": spread.median,
        "seconds_low": spread.low,
        "seconds_high": spread.high,
        "tokens_per_second": length / spread.median,
        "transformers_seconds": statistics.median(found["transformers"]),
        **point(subject.counts.work([Rows(0, length)]), spread.median, subject.machine),
    }


def _decode_row(subject: Subject, case: Case, laps: Sequence[Lap], theirs: Sequence[float]) -> Row:
    spread, batch = Spread.of(lap.seconds for lap in laps), case.batch_size
    work = subject.counts.work([Rows(case.context_length, 1)] * batch)
    return {
        "batch_size": batch,
        "context_length": case.context_length,
        "seconds_per_round": spread.median,
        "seconds_low": spread.low,
        "seconds_high": spread.high,
        "tokens_per_second": batch / spread.median,
        "tokens_per_second_per_request": 1 / spread.median,
        "transformers_seconds": statistics.median(theirs),
        "kv_bytes": subject.counts.kv_bytes_at(case.context_length, batch),
        **point(work, spread.median, subject.machine),
    }


def _verify_rows(subject: Subject, case: Case, found: Mapping[int, Sequence[Lap]]) -> Iterator[Row]:
    passes = {width: [pass_seconds(lap.event, subject.is_on_gpu) for lap in laps] for width, laps in found.items()}
    for width in sorted(found):
        spread = Spread.of(passes[width])
        rest = [
            lap.seconds - lap.event.seconds.draft - spent
            for lap, spent in zip(found[width], passes[width], strict=True)
        ]
        work = subject.counts.work([Rows(case.context_length, width, width)] * case.batch_size)
        yield {
            "width": width,
            "batch_size": case.batch_size,
            "context_length": case.context_length,
            "pass_seconds": spread.median,
            "seconds_low": spread.low,
            "seconds_high": spread.high,
            "overhead_seconds": statistics.median(rest),
            "ratio": spread.median / statistics.median(passes[1]),
            **point(work, spread.median, subject.machine),
        }


def _draft_row(case: Case, laps: Sequence[Lap], table: PassTable, subject: Subject) -> Row:
    setting, batch = case.setting, case.batch_size
    assert setting is not None, "a case of a drafter"
    spread = Spread.of(lap.event.seconds.draft for lap in laps)
    passes = [pass_seconds(lap.event, subject.is_on_gpu) for lap in laps]
    alone = [table.seconds(lap.event.num_rows / batch, batch, case.context_length) for lap in laps]
    drafted = sum(step.num_nodes > 0 for lap in laps for step in lap.event.steps)
    return {
        "drafter": setting.drafter,
        "num_speculative_tokens": setting.num_speculative_tokens,
        "num_tree_nodes": setting.num_tree_nodes,
        "batch_size": batch,
        "context_length": case.context_length,
        "seconds": spread.median,
        "seconds_low": spread.low,
        "seconds_high": spread.high,
        "overhead_seconds": statistics.median(
            lap.seconds - lap.event.seconds.draft - spent for lap, spent in zip(laps, passes, strict=True)
        ),
        "slowdown": statistics.median(spent / expected for spent, expected in zip(passes, alone, strict=True)),
        "ratio": spread.median / table.seconds(1, batch, case.context_length),
        "drafted_share": drafted / sum(len(lap.event.steps) for lap in laps),
    }


def synthetic_text(vocab_size: int, count: int) -> list[int]:
    """Random tokens, the same every time: for a model that has no tokenizer.

    Example:
        >>> synthetic_text(8, 4) == synthetic_text(8, 4)
        True
    """
    drawn = torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(0))
    return [int(token) for token in drawn]
