"""What others measured, as results of ours, for reports side by side: from answer files, logs and metrics."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

from .interop_engines import read_prometheus, read_sglang_log, read_vllm_log
from .interop_figures import Figures, Found, figures
from .interop_requests import read_requests
from .specbench import compare_answers, figures_of, read_answers

KIND, VERSION = "imported", 1
DEFINITIONS = {
    "estimate": "value: ratio of sums over all requests (micro); macro: mean of the requests' own ratios; low and "
    "high: 95 % interval, percentile cluster bootstrap over requests; null where a file has sums only",
    "null": "the file does not say it, and it does not follow from what it says",
    "tokens_per_step": "Spec-Bench: new tokens / decoding steps; systems that read the prompt in a step of its own, "
    "and count it, have one step more",
    "mean_acceptance_length": "vLLM: 1 + accepted / steps with a draft; SGLang: tokens / verify steps",
    "draft_acceptance_rate": "vLLM: accepted / drafted tokens",
    "node_acceptance_rate": "SGLang's accept rate: accepted / drafted nodes, all branches of a tree included",
    "acceptance_at_pos": "for each position: steps that accepted at least so many / steps with a draft",
    "tokens_per_second": "Spec-Bench: value: new tokens / wall time of all questions; macro: mean of the questions' "
    "own ratios, which is what its speed.py prints",
    "speedup": "tokens_per_second / that of the answers without speculation among the imported files, paired by "
    "question; macro: ratio of the macro figures",
    "text": "answers that are the same strings as those without speculation",
}

Reader: TypeAlias = Callable[[str, Path], list[Found]]


@dataclass(frozen=True, slots=True)
class Format:
    """Something to import, told apart from others by words that occur in it."""

    name: str
    marks: tuple[str, ...]  # all of them
    read: Reader


def _answers(text: str, path: Path) -> list[Found]:
    answers, skipped = read_answers(text, path)
    return [Found(answers.label, "spec-bench", figures_of(answers), skipped, answers)]


FORMATS = (
    Format("answers of Spec-Bench or EAGLE", ('"choices"', '"new_tokens"', '"wall_time"'), _answers),
    Format("vLLM's metrics of requests, in JSON", ('"num_spec_steps"',), read_requests),
    Format("SGLang's meta_info of requests, in JSON", ('"spec_verify_ct"',), read_requests),
    Format("metrics of vLLM", ("vllm:spec_decode_num_drafts",), read_prometheus),
    Format("metrics of SGLang", ("sglang:spec_accept_length",), read_prometheus),
    Format("log of vLLM", ("SpecDecoding metrics:",), read_vllm_log),
    Format("log of SGLang", ("accept len: ",), read_sglang_log),
)


def import_results(paths: Sequence[Path]) -> dict[str, Any]:
    """One result with an arm for each file (or model in it), figures that do not follow from it None.

    If one answer file is of plain decoding, the others are held against it, question by question.

    Raises:
        ValueError: a file is of none of the known formats, or nothing in it can be used.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "server.log")
        >>> line = "accept len: 2.50, accept rate: 0.50, cuda graph: True"
        >>> written = path.write_text(f"Decode batch. #running-req: 1, {line}\\n")
        >>> import_results([path])["arms"][0]["overall"]["mean_acceptance_length"]["value"]
        2.5
    """
    found = [one for path in paths for one in _read(path)]
    held = compare_answers([one.answers for one in found])
    arms = []
    for index, one in enumerate(found):
        is_baseline, by_category = held[index]
        groups = {name: {**group, **by_category.get(name, {})} for name, group in one.figures.items()}
        arms.append(_arm(one, index, groups, is_baseline))
    return {
        "kind": KIND,
        "version": VERSION,
        "source": [str(path) for path in paths],
        "definitions": DEFINITIONS,
        "environment": None,  # nobody knows where it was measured
        "warnings": [warning for arm in arms for warning in arm["warnings"]],
        "arms": arms,
    }


def _read(path: Path) -> Iterable[Found]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"expected a file to import, got {str(path)!r}: {error.strerror}; pass another") from error
    for known in FORMATS:
        if all(mark in text for mark in known.marks):
            return known.read(text, path)
    names = "; ".join(known.name for known in FORMATS)
    raise ValueError(f"expected a file of a known format, got {str(path)!r}; pass one of these: {names}")


def _arm(found: Found, index: int, groups: dict[str | None, Figures], is_baseline: bool) -> dict[str, Any]:
    name = sha256(f"{index} {found.system} {found.label}".encode()).hexdigest()[:8]
    return {
        "id": name,
        "label": found.label,
        "cell": f"imported from {found.system}",
        "baseline": name if is_baseline else None,
        "system": found.system,
        "drafter": None,
        "drafter_name": None,
        "num_speculative_tokens": found.num_speculative_tokens,
        "overall": figures(**groups.get(None, {})),
        "by_category": {name: figures(**group) for name, group in groups.items() if name is not None},
        "warnings": list(found.warnings),
    }
