"""A replay of traces: every setting of every arm, and the oracles, as plain values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specdec.experiments.stamp import environment
from specdec.experiments.statistics import Totals as Pairs
from specdec.experiments.statistics import speedup

from .acceptance import analytic_acceptance
from .cuts import Setting, obstacle
from .laws import LAW, RULES, exactness
from .oracle import Oracle, oracles
from .replay import Costs, Totals, replay, settings_of
from .schema import read_trace
from .texts import Trace, joined

LENGTHS = (1, 2, 3, 5, 8)  # that are replayed unless something is asked for
OnRow = Callable[[int, int, str], None]
DEFINITIONS = {
    "tokens_per_step": "Emitted tokens per target call, over all texts, the call over the prompt included: a ratio of "
    "sums. In law: tokens by expected calls, given the texts.",
    "low and high": "95 % percentile interval, prompts drawn anew with replacement; null below 3 prompts.",
    "is_exact": "The figure is that of a live run with this setting: of the very run if exactness is 'path', its "
    "expectation given the texts if 'law'. Otherwise the drafts are cut from larger ones, and a drafter with this "
    "setting would have drafted otherwise somewhere. Passes of other widths round differently: in 16 bits near ties "
    "may fall otherwise live.",
    "survival": "Analytic P(at least i drafted tokens are accepted) at all positions where a draft is so deep; low and "
    "high differ where tokens beyond the top_m likeliest may matter.",
    "tokens_per_cost": "Tokens per cost, which is 1 per target call, and so much per drafted node and per pass of the "
    "drafter as was given.",
    "oracles": "Upper bounds: the length is chosen in hindsight, the drafter knowing the text. No policy reaches them "
    "but by luck.",
}


@dataclass(frozen=True, slots=True)
class Questions:
    """What traces are asked; an option without values stays as it was traced."""

    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # of `Setting`
    verifiers: Sequence[str] = ()  # the rule that was traced if there is none, or "all"
    costs: Costs = Costs()

    def rules(self, trace: Trace) -> Sequence[str]:
        """Which rules a trace is asked about.

        Raises:
            ValueError: one of them is unknown.
        """
        unknown = next((rule for rule in self.verifiers if rule not in (*RULES, "all")), None)
        if unknown is not None:
            raise ValueError(f"expected --verifier of {', '.join(RULES)} or all, got {unknown!r}; pick some of them")
        return RULES if "all" in self.verifiers else self.verifiers or (rule_of(trace),)

    def settings(self, trace: Trace) -> list[Setting]:
        """Which settings it is asked about: of a chain without question the usual lengths, and what was traced."""
        if any(self.options.values()) or trace.header.get("is_tree"):
            return settings_of(self.options)
        longest = max((draft.depths[-1] for draft in trace.drafts), default=0)
        return [*(Setting(length) for length in LENGTHS if length < longest), Setting()]


def rule_of(trace: Trace) -> str:
    """The rule that the traced arm is verified by."""
    return str(trace.header.get("verifier"))


def read_traces(paths: Sequence[Path]) -> list[Trace]:
    """The traces in these files and folders, `trace/*.parquet` of a folder of `specdec bench` included, each once.

    Raises:
        ValueError: there is none, or one cannot be read; names it.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted([*path.glob("*.parquet"), *path.glob("trace/*.parquet")]) if path.is_dir() else [path]
        if not inside:
            raise ValueError(
                f"expected traces in {str(path)!r}, got no parquet file; run `specdec bench --trace` first"
            )
        files += inside
    return [read_trace(file) for file in {file.resolve(): file for file in files}.values()]


def sweep(traces: Sequence[Trace], questions: Questions, on_row: OnRow) -> dict[str, Any]:
    """The result of `specdec replay`, as plain values."""
    files: dict[str, list[Trace]] = {}
    for trace in traces:
        files.setdefault(trace.arm, []).append(trace)
    arms = [joined(group) for group in files.values()]
    asked = [(arm, rule, each) for arm in arms for rule in questions.rules(arm) for each in questions.settings(arm)]
    rows, warnings = [], []
    for done, (arm, rule, setting) in enumerate(asked):
        on_row(done, len(asked), arm.label)
        try:
            rows.append(row_of(arm, setting, rule, questions.costs))
        except ValueError as error:
            warnings.append(f"not replayed: {arm.label}: {error}")
    warnings += [
        f"{arm.label}: the target says something else at {count} places of the texts that were given to trace: rounding"
        for arm in arms
        if (count := arm.header.get("num_differences", 0))
    ]
    found = oracles([(arm, rule) for arm in arms for rule in _told(arm, questions)[:1]], questions.costs)
    return {
        "kind": "replay",
        "version": 1,
        "environment": environment(),
        "costs": asdict(questions.costs),
        "traces": [_about(trace) for trace in traces],
        "rows": rows,
        "oracles": [_oracle_row(oracle) for oracle in found],
        "warnings": list(dict.fromkeys(warnings)),
        "definitions": DEFINITIONS,
    }


def row_of(trace: Trace, setting: Setting, rule: str, costs: Costs) -> dict[str, Any]:
    """The figures of one arm under a setting and a rule.

    Raises:
        ValueError: the trace cannot tell; says why.
    """
    header = trace.header
    sense, why = exactness(header, rule), obstacle(header, setting)
    if why is not None:
        raise ValueError(f"expected a setting that the trace holds, got another; {why}")
    found = replay(trace, setting, rule, costs)
    is_same = all(sums.is_same for sums in found)
    notes = [] if is_same else ["cut from larger drafts; a drafter with this setting makes others"]
    return {
        "arm": trace.arm,
        "label": trace.label,
        "cell": trace.cell,
        "drafter": header.get("drafter_name"),
        "verifier": rule,
        **_settled(header, setting),
        **_figures(found, [text.prompt for text in trace.texts]),
        "survival": [asdict(bounds) for bounds in analytic_acceptance(trace, setting, rule)],
        "is_exact": is_same,
        "exactness": sense if is_same else "approximation",
        "note": "; ".join([*notes, *(["expectation given the texts"] if sense == LAW else [])]),
    }


def _figures(found: Sequence[Totals], prompts: Sequence[str]) -> dict[str, Any]:
    names = "num_tokens", "num_steps", "num_accepted", "num_drafted", "num_nodes", "cost"
    tokens, steps, accepted, drafted, nodes, cost = (sum(getattr(sums, name) for sums in found) for name in names)
    counts = sorted({count for sums in found for count in sums.accepted})
    return {
        **_interval(prompts, [(sums.num_tokens, sums.num_steps) for sums in found]),
        "accepted_per_step": accepted / steps,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "nodes_per_step": nodes / steps,
        "tokens_per_cost": tokens / cost,
        "num_texts": len(found),
        "num_tokens": tokens,
        "num_steps": steps,
        "accepted_histogram": {str(n): sum(sums.accepted.get(n, 0.0) for sums in found) for n in counts},
    }


def _told(trace: Trace, questions: Questions) -> list[str]:
    """Those of the rules in question that a trace tells something about."""
    found = []
    for rule in questions.rules(trace):
        try:
            exactness(trace.header, rule)
        except ValueError:
            continue
        found.append(rule)
    return found


def _settled(header: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """The setting, with what was traced where nothing was asked."""
    traced = header.get("settings", {})
    return {name: traced.get(name) if value is None else value for name, value in asdict(setting).items()}


def _interval(prompts: Sequence[str], pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Tokens per step of (tokens, steps) per text, as a speed-up over one token per step; turns are drawn together."""
    sums: dict[str, tuple[float, float]] = {}
    for prompt, (tokens, steps) in zip(prompts, pairs, strict=True):
        before = sums.get(prompt, (0.0, 0.0))
        sums[prompt] = before[0] + tokens, before[1] + steps
    ratio = speedup(Pairs.of(sums.values()), Pairs.of([(1.0, 1.0)] * len(sums)))
    return {"tokens_per_step": ratio.ratio, "low": ratio.low, "high": ratio.high}


def _oracle_row(oracle: Oracle) -> dict[str, Any]:
    return {
        "oracle": oracle.name,
        "arms": list(oracle.arms),
        "labels": list(oracle.labels),
        **_interval(oracle.prompts, list(zip(oracle.tokens, oracle.steps, strict=True))),
        "tokens_per_cost": sum(oracle.tokens) / sum(oracle.costs),
        "num_texts": len(oracle.tokens),
        "is_upper_bound": True,
    }


def _about(trace: Trace) -> dict[str, Any]:
    header = {
        name: value for name, value in trace.header.items() if name not in ("seeds", "kind", "version", "prompts")
    }
    per_token = trace.num_bytes / max(trace.num_tokens, 1)
    sizes = {"num_texts": len(trace.texts), "num_tokens": trace.num_tokens, "num_bytes": trace.num_bytes}
    return {"file": str(trace.path), **header, **sizes, "bytes_per_token": per_token}
