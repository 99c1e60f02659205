"""Small results of the other kinds that a report shows, shaped like real ones."""

from tests.toys.summaries import ENVIRONMENT


def _profiled(intensity, speed, seconds):
    return {
        "seconds_low": 0.9 * seconds, "seconds_high": 1.2 * seconds, "intensity": intensity,
        "flops_per_second": speed, "roofline_share": 0.2, "bound": "memory", "context_length": 64,
    }  # fmt: skip


PROFILE = {
    "kind": "profile", "version": 1, "environment": ENVIRONMENT, "settings": {"repeats": 3},
    "definitions": {"intensity": "operations per byte read"},
    "model": {"target": "embedded", "dtype": "bfloat16", "kv_bytes_at_context": {"64": 458752}},
    "machine": {"peak_flops": 2.7e11, "bandwidth_bytes_per_second": 1.9e10, "ridge_flop_per_byte": 14.2},
    "prefill": [
        {"prompt_length": n, "batch_size": 1, "ttft_seconds": 0.001 * n, **_profiled(n, 1e9 * n, 0.001 * n)}
        for n in (16, 64)
    ],
    "decode": [
        {"batch_size": b, "seconds_per_round": 0.01, "tokens_per_second": 100.0 * b, **_profiled(b, 2e9 * b, 0.01)}
        for b in (1, 4)
    ],
    "verify": [
        {"width": w, "batch_size": 1, "pass_seconds": 0.01, "ratio": 1 + w / 40, **_profiled(w, 2e9 * w, 0.01)}
        for w in (1, 5, 8)
    ],
    "draft": [{"drafter": "ngram", "num_speculative_tokens": 4, "num_tree_nodes": None, "seconds": 0.0001}],
}  # fmt: skip


def _way(label, drafter, length, batch, speed):
    return {
        "label": label, "drafter": drafter, "num_speculative_tokens": length, "num_tree_nodes": None,
        "batch_size": batch, "tokens_per_second": speed, "low": 0.9 * speed, "high": 1.1 * speed,
        "speedup": speed / 100, "tokens_per_step": 2.2, "break_even_tokens_per_step": 1.5,
        "break_even_acceptance": 0.3, "seconds": {"draft": 0.003, "verify": 0.01, "overhead": 0.0002, "total": 0.0132},
    }  # fmt: skip


WAYS = [_way("block k=4", "block", 4, 1, 190.0), _way("block k=2", "block", 2, 1, 150.0)]
WAYS += [_way("plain", None, None, 1, 100.0)]
PLAN = {
    "kind": "plan", "version": 1, "environment": ENVIRONMENT, "definitions": {"margin": "of the best over the next"},
    "model": {"target": "embedded"}, "acceptance": "specdec-bench", "context_length": 90.0, "rows": WAYS,
    "best": [{**WAYS[0], "margin": 1.9, "runner_up": "plain"}], "advice": "Batch 1: draft with block k=4.",
    "advice_by_batch": ["Batch 1: draft with block k=4."],
    "check": [
        {"label": "block k=4", "batch_size": 1, "predicted_tokens_per_second": 190.0,
         "measured_tokens_per_second": 185.0, "ratio": 1.03, "speedup_ratio": 1.01},
    ],
}  # fmt: skip

REPLAY = {
    "kind": "replay", "version": 1, "environment": ENVIRONMENT, "definitions": {"oracle": "best of each round"},
    "costs": {"draft": 0.1, "node": 0.0}, "warnings": [], "traces": [{"file": "trace/a-0.parquet", "num_bytes": 900}],
    "rows": [
        {"arm": "a", "label": "eagle3 k=4", "drafter": "eagle3", "verifier": rule, "num_speculative_tokens": k,
         "num_tree_nodes": None, "tokens_per_step": 1 + 0.4 * k, "low": 1 + 0.3 * k, "high": 1 + 0.5 * k,
         "draft_acceptance_rate": 0.4, "nodes_per_step": k, "tokens_per_cost": 1.1, "exactness": "path", "note": ""}
        for rule in ("token", "block") for k in (1, 2, 4)
    ],
    "oracles": [{"oracle": "best length", "labels": ["eagle3 k=4"], "tokens_per_step": 3.1, "low": 2.9, "high": 3.3,
                 "tokens_per_cost": 2.0}],
}  # fmt: skip

IMPORTED = {
    "kind": "imported", "version": 1, "environment": None, "source": ["server.log"], "warnings": ["one line is cut"],
    "definitions": {"null": "the file does not say it"},
    "arms": [
        {"id": "1", "label": "server.log", "cell": "imported from vllm", "baseline": None, "system": "vllm",
         "drafter": None, "drafter_name": None, "num_speculative_tokens": 3, "by_category": {}, "warnings": [],
         "overall": {"mean_acceptance_length": {"value": 2.4, "macro": None, "low": None, "high": None},
                     "acceptance_at_pos": [{"value": 0.8}, {"value": 0.5}, None], "text": None, "speedup": None}},
    ],
}  # fmt: skip
