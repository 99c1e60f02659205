"""Puts trained models into `specdec/zoo`, each with a card: `python -m specdec.experiments.assemble_zoo --help`.

The card states data, recipe and held-out loss from the run, and the draft model's the acceptance on held-out prompts.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import specdec
from specdec.checkpoints import load_model, load_tokenizer
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.ngram import NGram
from specdec.metrics import summarize
from specdec.zoo import FOLDER

from .corpus import DOMAINS, Document, read_documents
from .results_file import write_json

PROMPT_CHARACTERS = 400
NUM_PROMPTS = 8  # per domain
NEW_TOKENS = 64
DATA = """- simple stories (`stories`): TinyStories (CDLA-Sharing-1.0), about 4 MB
- prose: 129 public-domain novels, about 50 MB
- code: the standard library of CPython {python} (PSF licence), without its tests

One document in 50, by the hash of its name, is held out."""
TARGET_PURPOSE = "A small Llama that writes simple stories, prose and Python."
DRAFT_PURPOSE = "A very small Llama, distilled from the embedded target on the target's own text."
CARD = """# {title}

{purpose}

Made by `specdec train lm` (see `experiments/train_lm.py`) for demonstrations and tests of this toolkit: it runs
everything on a fresh machine without a hub, and says nothing about speed-ups on large models. Licence: Apache-2.0.

## Data

{data}

## Recipe

{parameters:,} parameters, bfloat16. Muon for matrices, AdamW for embeddings and norms; warm-up, constant rate, linear
decay. {steps} steps, {tokens:,} tokens{text}. Configuration:

```json
{config}
```

## Held-out loss

Nats per token: {losses}.

{acceptance}"""


def held_out_prompts(corpora: Path, count: int = NUM_PROMPTS) -> dict[str, list[str]]:
    """Openings of held-out documents and of their later parts, per domain."""
    prompts: dict[str, list[str]] = {domain: [] for domain in DOMAINS}
    documents = [document for document in read_documents(corpora) if document.held_out]
    for domain in DOMAINS:
        texts = [document for document in documents if document.domain == domain]
        prompts[domain] = [_part_of(texts[index % len(texts)], index // len(texts)) for index in range(count)]
    return prompts


def _part_of(document: Document, number: int) -> str:
    """Some text from a line start, further into the document for each number."""
    begin = document.text.find("\n", number * len(document.text) // NUM_PROMPTS)
    text = document.text[max(begin, 0) :].lstrip("\n")
    return text[:PROMPT_CHARACTERS].rsplit(" ", 1)[0]


def acceptance(target: Any, draft: Any, tokenizer: Any, prompts: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Greedy acceptance at depth 1 of the draft model, and tokens per step of it and of prompt lookup, per domain."""
    figures = {}
    for domain, texts in prompts.items():
        rounds: dict[str, list[Any]] = {"depth 1": [], "draft_model": [], "ngram": []}
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt").to(target.device)
            drafters = {
                "depth 1": DraftModel(draft, num_speculative_tokens=1),
                "draft_model": DraftModel(draft, num_speculative_tokens=5),
                "ngram": NGram(num_speculative_tokens=8),
            }
            for name, drafter in drafters.items():
                loop = specdec.speculate(drafter)
                target.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, custom_generate=loop)
                rounds[name].extend(loop.last.rounds)
        sums = {name: summarize(events) for name, events in rounds.items()}
        figures[domain] = {
            "acceptance at depth 1": sums["depth 1"].acceptance_rate,
            "draft_model tokens per step": sums["draft_model"].tokens_per_step,
            "ngram tokens per step": sums["ngram"].tokens_per_step,
        }
    return figures


def write_card(folder: Path, run: Path, title: str, purpose: str, acceptance_text: str) -> None:
    """Writes `README.md` beside the weights."""
    config = json.loads((run / "config.json").read_text())
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    model = load_model(str(folder), torch.bfloat16, torch.device("cpu"))
    written = next((path.stem.rsplit("_", 1)[1] for path in run.glob("self_text_*.npz")), None)
    card = CARD.format(
        title=title,
        purpose=purpose,
        data=DATA.format(python="3.11"),
        parameters=model.num_parameters(),
        steps=last["step"],
        tokens=last["step"] * config["batch_size"] * config["sequence_length"],
        text="" if written is None else f" in passes over {int(written):,} that the target wrote",
        config=json.dumps(config, indent=2),
        losses=", ".join(f"{domain} {loss:.2f}" for domain, loss in last["held_out"].items()),
        acceptance=acceptance_text,
    )
    (folder / "README.md").write_text(card.rstrip() + "\n")


def main(
    target_run: Annotated[Path, typer.Option(help="folder of the target's training run")],
    draft_run: Annotated[Path, typer.Option(help="folder of the draft model's training run")],
    corpora: Annotated[Path, typer.Option(help="folder of the corpora, for held-out prompts")],
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Copies both models and the tokenizer, measures acceptance and writes the cards."""
    torch.manual_seed(0)
    for name, run in (("target", target_run), ("draft", draft_run)):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        shutil.copytree(run / "model", FOLDER / name, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    shutil.rmtree(FOLDER / "tokenizer", ignore_errors=True)
    shutil.copytree(target_run / "tokenizer", FOLDER / "tokenizer")
    for path in FOLDER.rglob("*.*"):
        path.chmod(0o644)
    target, draft, _ = specdec.load_embedded()
    figures = acceptance(target, draft, load_tokenizer(str(FOLDER / "tokenizer")), held_out_prompts(corpora))
    lines = [
        f"- {domain}: " + ", ".join(f"{name} {value:.2f}" for name, value in row.items())
        for domain, row in figures.items()
    ]
    how = f"Greedy, {NUM_PROMPTS} held-out prompts per domain, {NEW_TOKENS} new tokens each:"
    text = "\n".join(["## Acceptance", "", how, "", *lines])
    write_card(FOLDER / "target", target_run, "Embedded target", TARGET_PURPOSE, "")
    write_card(FOLDER / "draft", draft_run, "Embedded draft model", DRAFT_PURPOSE, text)
    write_json(json_file, figures)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
