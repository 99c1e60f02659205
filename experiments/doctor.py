"""What this installation can do: versions, devices, kernels, methods, and whether a model can be run."""

import inspect
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from specdec.kernels.bodies import ASKED_FOR
from specdec.methods import DRAFTERS, VERIFIERS
from specdec.options import OTHER_METHODS, UNAVAILABLE_OUTPUTS
from specdec.sampling import REFUSED
from specdec.selfcheck import FOREIGN_LAYERS
from specdec.target import PagedModel

from .loading import EMBEDDED, load_models
from .stamp import environment


def examine(target: str | None, draft: str | None, dtype: str | None, device: str | None) -> dict[str, Any]:
    """Everything `doctor` knows, as plain values; what stands in the tables comes from the code that acts on it."""
    return {
        "environment": environment(),
        "kernels": ASKED_FOR or ("triton" if torch.cuda.is_available() else "reference"),
        "target": _checked(target, draft, dtype, device),
        "drafters": {name: _options(factory) for name, factory in DRAFTERS.items()},
        "rules": {
            name: {"level": rule().level.name, "promise": rule().level.value, "chain_only": rule().chain_only}
            for name, rule in VERIFIERS.items()
        },
        "refused": {
            "options": {**{name: f"only {off!r}" for name, off in OTHER_METHODS.items()}, **_outputs()},
            "processors": {kind.__name__: reason for kind, reason in REFUSED.items()},
            "layers": list(FOREIGN_LAYERS),
        },
    }


def print_examination(found: dict[str, Any], console: Console) -> None:
    """The same for people."""
    table = Table(show_header=False, box=None)
    for name, value in found["environment"].items():
        table.add_row(name, ", ".join(value) or "none" if isinstance(value, list) else str(value))
    table.add_row("kernels", found["kernels"])
    checked = found["target"]
    table.add_row("model", f"{checked['name']}: {checked['model'] or 'not loaded'}")
    table.add_row("self-check", "passed" if checked["passed"] else f"FAILED: {checked['reason']}")
    for name, options in found["drafters"].items():
        table.add_row(f"drafter {name}", ", ".join(f"{key}={value}" for key, value in options.items()))
    for name, rule in found["rules"].items():
        table.add_row(f"rule {name}", rule["promise"] + (", chains only" if rule["chain_only"] else ""))
    refused = found["refused"]
    table.add_row("refused options", ", ".join(f"{name} ({why})" for name, why in refused["options"].items()))
    table.add_row("refused processors", ", ".join(refused["processors"]))
    table.add_row("refused models", f"encoder-decoder, ALiBi; layers called {', '.join(refused['layers'])}")
    table.add_row("other models", "run if the self-check passes on their own weights: --target PATH_OR_HUB_ID")
    console.print(table, highlight=False)


def _checked(target: str | None, draft: str | None, dtype: str | None, device: str | None) -> dict[str, Any]:
    """Whether the models load and pass the self-check, and why not."""
    found: dict[str, Any] = {"name": target or EMBEDDED, "model": None, "passed": False, "reason": None}
    try:
        models = load_models(target, draft, dtype, device)
        found["model"] = f"{type(models.target).__name__} {models.target.num_parameters():,} parameters"
        found |= models.as_dict()
        for model in (models.target, models.draft):
            if model is not None:
                PagedModel(model, check=True).close()
    except ValueError as error:
        return {**found, "reason": str(error)}
    return {**found, "passed": True}


def _options(factory: Any) -> dict[str, Any]:
    """Option -> default of a drafter; "required" where there is none."""
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: "required" if p.default is p.empty else p.default for p in parameters}


def _outputs() -> dict[str, str]:
    return {name: "only False" for name in UNAVAILABLE_OUTPUTS}
