"""A made-up summary of a benchmark, shaped like a real one: figures follow from simulated steps or are plausible."""

import random

CATEGORIES = ("code", "dialogue", "facts", "math", "prose", "story")
DRAFTERS = {  # name -> (chance that a draft is accepted, its loss per depth, milliseconds per drafted token)
    "ngram": (0.58, 0.00, 0.01),
    "draft_model": (0.80, 0.02, 1.30),
    "medusa": (0.66, 0.09, 0.09),
    "eagle3": (0.78, 0.03, 0.45),
    "block": (0.70, 0.06, 0.20),
    "mtp": (0.72, 0.05, 0.55),
}
LENGTHS = (2, 4, 7)
SCORE_MS, HOST_MS = 6.0, 0.3
DEFINITIONS = {
    "tokens_per_step": "emitted tokens / target calls, the bonus token counted",
    "mean_acceptance_length": "1 + accepted / steps with a draft; as vLLM",
    "draft_acceptance_rate": "accepted / drafted tokens",
    "survival_at_pos": "of the steps that drafted so deep, the share that accepted so deep",
    "speedup": "tokens per second / those of the paired baseline",
}
ENVIRONMENT = {
    "specdec": "0.1.0", "commit": "0123456789ab", "python": "3.11.9", "torch": "2.11.0", "transformers": "5.17.0",
    "platform": "Linux", "cpu": "A processor", "num_cpus": 2, "num_threads": 1, "devices": [],
}  # fmt: skip


def estimate(value, spread=0.05, macro=None):
    return {
        "value": value,
        "macro": value if macro is None else macro,
        "low": value * (1 - spread),
        "high": value * (1 + spread),
    }


def spread_of(value, spread=0.05):
    return {"mean": estimate(value, spread), "p50": value * 0.95, "p90": value * 1.3, "p99": value * 1.7}


def simulate(source, chance, loss, length, num_tokens):
    """Accepted drafts per step until so many tokens are out."""
    accepted = []
    while sum(accepted) + len(accepted) < num_tokens:
        depth = 0
        while depth < length and source.random() < chance - loss * depth:
            depth += 1
        accepted.append(depth)
    return accepted


def rates(accepted, length):
    """Unconditional, survival and conditional acceptance by position."""
    reached = [sum(a >= depth for a in accepted) for depth in range(length + 1)]
    unconditional = [estimate(n / len(accepted)) for n in reached[1:]]
    pairs = zip(reached[1:], reached, strict=False)
    return unconditional, unconditional, [estimate(n / before) if before else None for n, before in pairs]


def timing(num_tokens, num_steps, drafting_ms):
    """Seconds by part, in total, per token and per step."""
    step = {"draft": drafting_ms, "score": SCORE_MS, "rule": 0.15, "cache": 0.08, "host": HOST_MS}
    seconds = {name: num_steps * ms / 1000 for name, ms in step.items()}
    seconds["outside"] = 0.0002 * num_tokens
    return {**seconds, "total": sum(seconds.values())}


def figures(accepted, length, drafting_ms, num_prompts, text):
    """FIGURES of steps; `length` 0 is plain decoding."""
    num_steps, num_accepted = len(accepted), sum(accepted)
    num_tokens, num_drafted = num_steps + num_accepted, num_steps * length
    seconds = timing(num_tokens, num_steps, drafting_ms)
    plain = timing(num_tokens, num_tokens, 0.0)["total"]
    per_token = seconds["total"] / num_tokens
    unconditional, survival, conditional = rates(accepted, length)
    ratio = plain / seconds["total"]
    speedup = {"ratio": ratio, "low": ratio * 0.95, "high": ratio * 1.05, "macro": ratio * 0.99}
    return {
        "num_prompts": num_prompts, "num_requests": num_prompts, "num_runs": num_prompts, "num_tokens": num_tokens,
        "num_steps": num_steps, "num_steps_without_draft": 0 if length else num_steps, "num_drafted": num_drafted,
        "num_accepted": num_accepted, "num_nodes": num_drafted, "num_wasted": num_drafted - num_accepted,
        "tokens_per_step": estimate(num_tokens / num_steps),
        "mean_acceptance_length": estimate(1 + num_accepted / num_steps) if length else None,
        "accepted_per_step": estimate(num_accepted / num_steps),
        "draft_acceptance_rate": estimate(num_accepted / num_drafted) if length else None,
        "node_acceptance_rate": estimate(num_accepted / num_drafted) if length else None,
        "target_calls_per_token": estimate(num_steps / num_tokens),
        "waste": estimate(1 - num_accepted / num_drafted) if length else None,
        "acceptance_at_pos": unconditional, "survival_at_pos": survival, "conditional_acceptance_at_pos": conditional,
        "accepted_histogram": {str(n): accepted.count(n) for n in range(length + 1)},
        "acceptance_histogram_by_draft_length": {},
        "acceptance_by_depth_and_rank": [], "by_source": {},
        "ttft_seconds": spread_of(0.02), "tpot_seconds": spread_of(per_token),
        "itl_seconds": spread_of(seconds["total"] / num_steps), "itl_per_token_seconds": spread_of(per_token),
        "e2e_seconds": spread_of(seconds["total"] / num_prompts),
        "tokens_per_second": estimate(1 / per_token), "seconds": seconds,
        "speedup": speedup, "speedup_tpot": speedup,
        "memory": {"target_kv_bytes": 2_400_000, "drafter_kv_bytes": 300_000 * bool(length), "device_peak_bytes": None},
        "text": text,
        "degeneracy": {"repetition": estimate(0.03), "eos_rate": 0.1, "is_flagged": False, "flagged": []},
    }  # fmt: skip


def same_text(num_prompts):
    return {"num_compared": num_prompts, "num_identical": num_prompts, "num_ties": 0, "differences": []}


def tied_text(num_prompts):
    difference = {
        "prompt": "story-03", "turn": 0, "position": 41, "margin": 0.0625, "resolution": 0.05, "is_tie": True,
    }  # fmt: skip
    return {
        "num_compared": num_prompts, "num_identical": num_prompts - 1, "num_ties": 1, "differences": [difference],
    }  # fmt: skip


def arm(index, name, length, cell, baseline):
    return {
        "id": f"{index:08x}",
        "label": f"{name} k={length}" if name else "plain",
        "cell": cell,
        "baseline": baseline,
        "system": "specdec",
        "drafter": {"method": name, "num_speculative_tokens": length} if name else None,
        "drafter_name": name,
        "num_speculative_tokens": length,
        "num_tree_nodes": None,
        "verifier": "greedy",
        "level": "same text as plain decoding",
        "is_lossless": True,
        "sampling": {"temperature": 0.0, "top_p": None, "top_k": None},
        "batch_size": 1,
        "dtype": "bfloat16",
        "target": "embedded",
        "max_new_tokens": 64,
        "seed": 0,
        "warnings": [],
    }


def with_figures(found, source, drafter, num_prompts):
    """The arm with figures over all prompts and by category."""
    chance, loss, cost = drafter
    length = found["num_speculative_tokens"] or 0
    drafting, per_category = cost * length, {}
    size = num_prompts // len(CATEGORIES) + 1
    for place, category in enumerate(CATEGORIES):
        shifted = chance + 0.06 * (2 - place) / 2
        accepted = simulate(source, shifted, loss, length, 64 * size)
        per_category[category] = (accepted, figures(accepted, length, drafting, size, same_text(size)))
    together = [count for accepted, _ in per_category.values() for count in accepted]
    text = tied_text(num_prompts) if found["drafter_name"] == "medusa" else same_text(num_prompts)
    return {
        **found,
        "overall": figures(together, length, drafting, num_prompts, text),
        "by_category": {category: values for category, (_, values) in per_category.items()},
    }


def bench_summary(drafters=DRAFTERS, lengths=LENGTHS, num_prompts=20, cell="embedded bfloat16 greedy batch 1"):
    """A summary.json: every drafter at every length, and plain decoding."""
    source = random.Random(cell)
    plain = arm(0, None, None, cell, "00000000")
    arms = [with_figures(plain, source, (0.0, 0.0, 0.0), num_prompts)]
    for name, drafter in drafters.items():
        for length in lengths:
            found = arm(len(arms), name, length, cell, plain["id"])
            arms.append(with_figures(found, source, drafter, num_prompts))
    settings = {
        "target": "embedded", "dtype": "bfloat16", "lengths": list(lengths), "max_new_tokens": 64, "repeats": 3,
        "prompts": [f"story-{index:02}" for index in range(num_prompts)],
    }  # fmt: skip
    return {
        "kind": "bench-summary", "version": 1, "settings": settings, "environment": ENVIRONMENT,
        "definitions": DEFINITIONS, "warnings": [], "num_runs": len(arms) * num_prompts, "arms": arms,
    }  # fmt: skip
