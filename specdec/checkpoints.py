"""Models and tokenizers from a folder or the hub: safetensors only, every weight accounted for, no code of theirs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .mtp_layouts import without_modules

MAX_NAMES = 3  # weights named in an error


def load_model(
    path: str,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    spread: Mapping[str, str] | None = None,
) -> PreTrainedModel:
    """The causal LM of a folder or hub id, in evaluation mode.

    Args:
        path: what `from_pretrained` takes.
        dtype: "auto" for the one the checkpoint was saved in.
        device: where to put it.
        spread: how to lay it over several devices instead: {"device_map": "auto"}, or {"tp_plan": "auto"}, for which
            as many processes were started together.

    Raises:
        ValueError: no safetensors, an unknown architecture, or weights that are missing, surplus or of another shape.
            transformers would fill them with noise or drop them, and the text would be wrong without a word.
    """
    require_folder(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below
            **_placement(spread or {}),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"expected a causal LM with safetensors, got {path!r}: {first_line(error)}; pass a folder or hub id"
        ) from error
    model, report = loaded
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(key if isinstance(key, str) else key[0]) for key in report[f"{kind}_keys"])
        names = without_modules(names) if kind == "unexpected" else names  # MTP modules: the model runs without
        if names:
            raise ValueError(
                f"expected the weights of a {type(model).__name__}, got {len(names)} {kind} in {path!r} "
                f"({listed(names)}); save the model again with save_pretrained, or correct its config.json"
            )
    placed: PreTrainedModel = (model if spread else model.to(device)).eval()
    return placed


def _placement(spread: Mapping[str, str]) -> dict[str, Any]:
    """As this version of transformers takes it."""
    plan: Any = spread.get("tp_plan")
    if plan is None:
        return dict(spread)
    from transformers.distributed import DistributedConfig  # newer versions take the plan in it, and warn of the other

    fields = getattr(DistributedConfig, "__dataclass_fields__", {})
    return {"distributed_config": DistributedConfig(tp_plan=plan)} if "tp_plan" in fields else {"tp_plan": plan}


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        ValueError: there is none.
    """
    require_folder(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"expected a tokenizer, got {path!r}: {first_line(error)}; save the model's tokenizer beside it"
        ) from error


def has_tokenizer(path: str) -> bool:
    """Whether a local folder holds a tokenizer of its own; a hub id is taken to do so."""
    folder = Path(path)
    return not folder.is_dir() or any(folder.glob("tokenizer*"))


def require_folder(path: str) -> None:
    """Raises for what can only be meant as a folder and is none, before the hub is asked for it."""
    meant_as_folder = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).is_file()
    if meant_as_folder and not Path(path).is_dir():
        raise ValueError(f"expected a model folder or hub id, got {path!r}; there is no such folder")


def listed(names: Sequence[str]) -> str:
    """The first names.

    Example:
        >>> listed(["a", "b", "c", "d"])
        'a, b, c, ...'
    """
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def first_line(error: Exception) -> str:
    """What an error says, in one line without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
