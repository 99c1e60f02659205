"""Puts trained heads into `specdec/zoo`, each with a card: `python -m specdec.experiments.assemble_heads --help`.

The card states recipe and data from the run; what the heads are worth, `experiments/head_acceptance.py` measures.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from specdec.tensor_files import read_tensors
from specdec.zoo import FOLDER

from .assemble_zoo import DATA
from .results_file import write_json

TARGET_NAME = "specdec embedded target"
PURPOSES = {
    "medusa": "Medusa heads (2401.10774): each guesses a token further ahead, from the target's last hidden state.",
    "eagle3": "An EAGLE-3 head (2503.01840): one layer that reads three layers of the target, and its own states.",
    "block": "A block drafter (DFlash, 2602.06036) with a Markov head (DSpark, 2607.05147): one pass for all tokens.",
}
CARD = """# Embedded head: {name}

{purpose}

Made by `specdec train {name}` for the embedded target, for demonstrations and tests of this toolkit; it says nothing
about speed-ups on large models. `specdec.load_drafter(specdec.zoo.embedded_heads()["{name}"], target)` loads it.
Licence: Apache-2.0.

## Data

{responses:,} tokens that the embedded target wrote at temperature 1, as continuations of openings of what it was itself
trained on:

{data}

## Recipe

{parameters:,} parameters, bfloat16; {steps:,} steps, {tokens:,} tokens of responses.{note} Configuration:

```json
{config}
```
"""


def assemble(name: str, run: Path, note: str = "") -> None:
    """Copies the head of a run, under a name of `PURPOSES`, and writes its card.

    Raises:
        ValueError: the run has not come to its end.
    """
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    result_path = run.with_suffix(".json")  # written by `specdec train --json` when all is done
    if not result_path.is_file():
        raise ValueError(f"expected the result of a finished run in {str(result_path)!r}, got none; let it finish")
    result = json.loads(result_path.read_text(encoding="utf-8"))
    folder = FOLDER / "heads" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run / "head", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", _renamed(written))
    steps = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"]
    card = CARD.format(
        name=name,
        purpose=PURPOSES[name],
        data=DATA.format(python="3.11"),
        responses=result["num_response_tokens"],
        parameters=sum(part.numel() for part in read_tensors(str(folder)).values() if part.is_floating_point()),
        steps=steps,
        tokens=round(result["num_response_tokens"] * config["epochs"]),
        note=f"\n{note}\n" if note else "",
        config=json.dumps(config, indent=2),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """With the target's name in place of the folder where it lay."""
    if "base_model_name_or_path" in config:
        return {**config, "base_model_name_or_path": TARGET_NAME}
    about = config["speculators_config"]
    return {**config, "speculators_config": {**about, "verifier": {**about["verifier"], "name_or_path": TARGET_NAME}}}


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs, which are called as the heads.")],
    note: Annotated[list[str] | None, typer.Option(help="NAME=TEXT, what else the card of a head has to say.")] = None,
) -> None:
    """Copies the heads and writes their cards."""
    notes = dict(each.split("=", 1) for each in note or ())
    for name in PURPOSES:
        assemble(name, runs / name, notes.get(name, ""))


if __name__ == "__main__":
    typer.run(main)
