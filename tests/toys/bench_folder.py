"""A result folder of a benchmark as it lies on the disk, without models: two arms, two prompts, one of two turns."""

import json

from specdec.experiments.bench.store import sealed

PLAIN, DRAFTED = "aaaaaaaa", "bbbbbbbb"
PROMPTS = (("81", "writing", 2), ("7", "qa", 1))
TEXTS = {("81", 0): (40, 41, 42, 43), ("81", 1): (44, 45, 46), ("7", 0): (50, 51)}
EMITTED = {PLAIN: {key: [1] * len(tokens) for key, tokens in TEXTS.items()},
           DRAFTED: {("81", 0): [1, 3], ("81", 1): [1, 2], ("7", 0): [1, 1]}}  # fmt: skip


def arm(name, **changes):
    return {
        "id": name, "label": "plain" if name == PLAIN else "ngram k=4", "cell": "c", "baseline": PLAIN,
        "system": "specdec", "drafter": None if name == PLAIN else {"method": "ngram"}, "target": "embedded",
        "dtype": "float32", "batch_size": 1, "sampling": {"temperature": 0.0}, **changes,
    }  # fmt: skip


def record(name, group, repeat=0, seconds=2.0, **changes):
    prompt, _, num_turns = PROMPTS[group]
    requests = [
        {
            "prompt": prompt, "turn": turn, "num_prompt_tokens": 3, "tokens": list(TEXTS[prompt, turn]),
            "finish_reason": "length", "steps": {"emitted": EMITTED[name][prompt, turn]},
        }
        for turn in range(num_turns)
    ]  # fmt: skip
    calls = [{"seconds": seconds / num_turns, "rounds": None}] * num_turns
    return {
        "arm": name, "group": group, "repeat": repeat, "process": "p", "began": 1000.0, "seconds": seconds,
        "calls": calls, "requests": requests, "memory": {}, **changes,
    }  # fmt: skip


def bench_folder(folder, arms=None, records=None):
    """Writes it; two repeats of both arms unless told otherwise."""
    folder.mkdir()
    arms = [arm(PLAIN), arm(DRAFTED)] if arms is None else arms
    prompts = [
        {"id": name, "category": category, "num_turns": turns, "group": index}
        for index, (name, category, turns) in enumerate(PROMPTS)
    ]
    header = {"kind": "bench", "version": 1, "settings": {}, "arms": arms, "prompts": prompts, "environment": {}}
    (folder / "bench.json").write_text(json.dumps(header))
    if records is None:
        records = [
            record(name, group, repeat, seconds=2.0 if name == PLAIN else 1.0)
            for repeat in (0, 1)
            for group in (1, 0)
            for name in (PLAIN, DRAFTED)
        ]
    (folder / "records-0.jsonl").write_bytes(b"".join(map(sealed, records)))
    return folder
