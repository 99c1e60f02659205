"""Records of a bench that never ran: headers, runs and requests whose events are known."""

import random
from itertools import accumulate

PARTS = {"draft": 0.25, "score": 0.5, "rule": 0.125, "cache": 0.0625, "host": 0.0625}  # shares of a round


def an_arm(name, baseline="base", **changes):
    """An entry of a header's "arms"."""
    is_baseline = name == baseline
    return {
        "id": name,
        "label": "plain" if is_baseline else f"draft_model {name}",
        "cell": "toy float32 greedy batch 1",
        "baseline": baseline,
        "system": "specdec",
        "drafter": None if is_baseline else {"method": "draft_model"},
        "drafter_name": None if is_baseline else "draft_model",
        "num_speculative_tokens": None if is_baseline else 5,
        "num_tree_nodes": None,
        "verifier": "greedy",
        "level": "pathwise",
        "is_lossless": True,
        "sampling": {"temperature": 0.0},
        "batch_size": 1,
        "dtype": "float32",
        "target": "toy",
        "max_new_tokens": 64,
        "seed": 0,
        **changes,
    }


def a_header(arms, prompts, categories=("all",)):
    """The header of a bench over prompts of these names, each a group of its own."""
    listed = [
        {"id": name, "category": categories[index % len(categories)], "num_turns": 1, "group": index}
        for index, name in enumerate(prompts)
    ]
    return {
        "kind": "bench",
        "version": 1,
        "settings": {"repeats": 1},
        "environment": {"torch": "2.13", "cpu": "toy", "commit": "abc"},
        "arms": list(arms),
        "prompts": listed,
    }


def a_step(accepted=0, drafted=0, **changes):
    """A chain of which so much was accepted; or, with `nodes`, `ranks` and `offered`, a tree."""
    step = {"emitted": accepted + 1, "accepted": accepted, "drafted": drafted, "nodes": drafted, "wasted": 0}
    return step | {"source": "draft_model" if drafted else ""} | changes


def a_request(prompt, steps, tokens=None, **changes):
    """The request of a prompt that made these steps, one per round; its tokens all differ unless given."""
    if steps is not None:
        names = {name for step in [a_step(), *steps] for name in step}
        columns = {"round": list(range(len(steps))), **{name: [step[name] for step in steps] for name in names}}
        num_tokens = sum(columns.get("emitted", []))
    else:
        columns, num_tokens = None, 8
    return {
        "prompt": prompt,
        "turn": 0,
        "num_prompt_tokens": 4,
        "tokens": list(range(num_tokens)) if tokens is None else list(tokens),
        "finish_reason": "length",
        "steps": columns,
        **changes,
    }


def a_call(num_rounds, round_seconds=1.0, outside=0.0):
    """A call of rounds of equal length."""
    rounds = {name: [share * round_seconds] * num_rounds for name, share in PARTS.items()}
    rounds["ended"] = list(accumulate([round_seconds] * num_rounds))
    rounds["num_rows"] = [1] * num_rounds
    rounds["is_prefill"] = [index == 0 for index in range(num_rounds)]
    return {"seconds": num_rounds * round_seconds + outside, "rounds": rounds}


def a_run(arm, group, requests, round_seconds=1.0, outside=0.0, **changes):
    """One record: a call for each turn, as many rounds as its longest request has steps."""
    turns = {}
    for request in requests:
        turns.setdefault(request["turn"], []).append(request)
    calls = []
    for turn in sorted(turns):
        if any(request["steps"] is None for request in turns[turn]):
            calls.append({"seconds": 8 * round_seconds + outside, "rounds": None})
        else:
            num_rounds = max(len(request["steps"]["round"]) for request in turns[turn])
            calls.append(a_call(num_rounds, round_seconds, outside))
    memory = {"target_kv_bytes": 100 + group, "drafter_kv_bytes": 10, "device_peak_bytes": None}
    return {
        "arm": arm,
        "group": group,
        "repeat": 0,
        "process": "p",
        "began": 0.0,
        "seconds": sum(call["seconds"] for call in calls),
        "calls": calls,
        "requests": list(requests),
        "memory": memory,
        **changes,
    }


def plain_run(arm, group, prompt, num_tokens, **changes):
    """A run without drafts: one token per step."""
    return a_run(arm, group, [a_request(prompt, [a_step()] * num_tokens)], **changes)


def drafted_steps(source: random.Random, acceptance, drafted, num_steps):
    """Steps of a chain whose tokens are each accepted with this probability, if all before them were."""
    steps = []
    for _ in range(num_steps):
        refused = (index for index in range(drafted) if source.random() >= acceptance)
        steps.append(a_step(next(refused, drafted), drafted))
    return steps


def a_sweep(num_arms=2, num_prompts=6, num_steps=12, seed=0):
    """A header and records of a baseline and of arms that draft ever longer chains, in ever longer rounds."""
    source = random.Random(seed)
    prompts = [f"prompt{index}" for index in range(num_prompts)]
    arms = [an_arm("base"), *(an_arm(f"k{k}", num_speculative_tokens=k) for k in range(1, num_arms + 1))]
    records = []
    for group, prompt in enumerate(prompts):
        hardness = 0.5 + 0.4 * source.random()
        for k in range(num_arms + 1):
            steps = [a_step(), *drafted_steps(source, hardness, k, num_steps)]
            seconds = (1 + 0.1 * k) * (0.9 + 0.2 * source.random())
            request = a_request(prompt, steps, **({"difference": None} if k else {}))
            records.append(a_run(arms[k]["id"], group, [request], round_seconds=seconds, outside=0.5))
    return a_header(arms, prompts, categories=("prose", "code")), records
