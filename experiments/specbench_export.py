"""A benchmark's results as answer files of Spec-Bench, for its scripts speed.py and equal.py.

A step is a call of the target, the one over the prompt included: plain decoding has as many as tokens, as Spec-Bench's
own baseline has. `wall_time` is that of the generate call of a turn, prompt included. speed.py counts a baseline's
tokens by tokenising its texts and taking one off for the beginning-of-text token.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.checkpoints import load_tokenizer
from specdec.zoo import FOLDER

from .bench.store import read_header, read_records
from .loading import EMBEDDED
from .results_file import write_text
from .specbench import BASELINE

Decode = Callable[[Sequence[int]], str]


def export_answers(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    """Writes one answer file per arm and repeat: `out/run_1/NAME.jsonl`. Returns the files, and what was left out.

    Raises:
        ValueError: there are no results, or none that Spec-Bench could have made: one prompt at a time, with events.
    """
    if next((place for place in (out, *out.parents) if place.exists()), out).is_file():
        raise ValueError(f"expected a folder to write to, got a file at {str(out)!r}; pass another --out")
    try:
        files, warnings = _export(folder, out)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected fields of a benchmark in {str(folder)!r}, got none that fit: {type(error).__name__} {error}; "
            "pass a folder that is as `specdec bench` wrote it"
        ) from error
    if not files:
        raise ValueError(
            f"expected runs of one prompt at a time, got none in {str(folder)!r}; run `specdec bench` with batch size 1"
        )
    return files, warnings


def _export(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    header, (records, warnings) = read_header(folder), read_records(folder)
    prompts = {prompt["id"]: prompt["category"] for prompt in header["prompts"]}
    ids = _question_ids(list(prompts))
    files = []
    decoders: dict[str, Decode] = {}
    for arm in header["arms"]:
        own = [record for record in records if record["arm"] == arm["id"]]
        problem = _problem(arm, own)
        if problem is not None:
            warnings.append(f"{arm['label']}: left out, {problem}")
            continue
        if arm["target"] not in decoders:
            decoders[arm["target"]] = _decoder(arm["target"])
        for repeat in sorted({record["repeat"] for record in own}):
            lines: dict[str, str] = {}
            for record in own:
                if record["repeat"] == repeat:
                    name, line = _answer(record, arm, prompts, ids, decoders[arm["target"]])
                    lines.setdefault(name, line)  # a baseline may have run once per process
            path = out / f"run_{repeat + 1}" / f"{model_id(arm)}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(lines[name] for name in prompts if name in lines))
            files.append(path)
    return files, warnings


def model_id(arm: Mapping[str, Any]) -> str:
    """The name of an arm in the manner of Spec-Bench, fit for a file's name.

    Example:
        >>> arm = {"target": "hub/llama", "label": "eagle3 k=5", "id": "9f2c01ab", "baseline": "0", "dtype": "float16"}
        >>> model_id({**arm, "sampling": {"temperature": 0.0}})
        'llama-eagle3-k-5-float16-temp-0.0-9f2c01ab'
    """
    label = BASELINE if arm["id"] == arm["baseline"] else arm["label"]
    name = f"{Path(arm['target']).name}-{label}-{arm['dtype']}-temp-{arm['sampling']['temperature']}-{arm['id']}"
    return re.sub(r"[^\w.]+", "-", name)


def _problem(arm: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str | None:
    if arm["batch_size"] != 1:
        return "it ran several prompts at once"
    if not records:
        return "it has no runs"
    if arm["drafter"] is not None and any(one["steps"] is None for record in records for one in record["requests"]):
        return "it tells nothing of its steps"
    return None


def _answer(
    record: Mapping[str, Any],
    arm: Mapping[str, Any],
    prompts: Mapping[str, str],
    ids: Mapping[str, Any],
    decode: Decode,
) -> tuple[str, str]:
    """The prompt's name and its line."""
    requests = sorted(record["requests"], key=lambda request: request["turn"])
    name = requests[0]["prompt"]
    lengths = [_lengths(request) for request in requests]
    choice = {
        "index": 0,
        "turns": [decode(request["tokens"]).strip() for request in requests],
        "decoding_steps": [len(each) for each in lengths],
        "new_tokens": [len(request["tokens"]) for request in requests],
        "wall_time": [record["calls"][request["turn"]]["seconds"] for request in requests],
        "accept_lengths": [length for each in lengths for length in each],
    }
    answer = {
        "question_id": ids[name],
        "category": prompts[name],
        "answer_id": uuid.uuid5(uuid.NAMESPACE_URL, f"{arm['id']}/{name}/{record['repeat']}").hex,
        "model_id": model_id(arm),
        "choices": [choice],
        "tstamp": record["began"] + record["seconds"],
    }
    return name, json.dumps(answer) + "\n"


def _lengths(request: Mapping[str, Any]) -> list[int]:
    steps = request["steps"]
    emitted: list[int] = [1] * len(request["tokens"]) if steps is None else steps["emitted"]
    return emitted


def _question_ids(names: Sequence[str]) -> dict[str, int | str]:
    """Whole numbers, as Spec-Bench's questions have, if the prompts came with such; its scripts sort by them."""
    are_numbers = all(re.fullmatch(r"0|[1-9]\d*", name) for name in names)
    return {name: int(name) if are_numbers else name for name in names}


def _decoder(target: str) -> Decode:
    tokenizer = load_tokenizer(str(FOLDER / "tokenizer") if target == EMBEDDED else target)

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode
