"""Configs and tensors of checkpoints that are no models of transformers, from a folder or the hub.

Safetensors are taken first. Pickled files are read as tensors only: nothing that lies in them is run.
"""

import json
import pickle
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .checkpoints import first_line, listed, require_folder

CONFIG = "config.json"
ASIDE = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt", "training_state.pt")
SAFE, PICKLED = ("*.safetensors",), ("*.bin", "*.pt")  # in the order in which they are looked for
INDEX = ".index.json"  # of a checkpoint in several files: which tensor is where


def read_config(path: str) -> dict[str, Any]:
    """The `config.json` of a folder or hub id.

    Raises:
        ValueError: there is none.
    """
    return _json_of(_folder(path, CONFIG) / CONFIG)


def read_tensors(path: str) -> dict[str, Tensor]:
    """All tensors of a folder or hub id by their names, on the CPU.

    Raises:
        ValueError: there are none, too many files to choose from, or what a file holds is not tensors only.
    """
    for patterns in (SAFE, PICKLED):
        folder = _folder(path, *patterns, *(pattern + INDEX for pattern in patterns))
        files = _files_of(folder, patterns)
        if files:
            tensors: dict[str, Tensor] = {}
            for file in files:
                tensors |= _tensors_of(file)
            return tensors
    raise ValueError(f"expected weights in {path!r}, got none; {', '.join((*SAFE, *PICKLED))} are read")


def read_chosen(path: str, choose: Callable[[list[str]], Collection[str]]) -> dict[str, Tensor]:
    """Those tensors of a folder or hub id that are chosen by their names, on the CPU; no others are read.

    Of a checkpoint in several files with an index, only files with chosen tensors are fetched.

    Args:
        choose: names of all tensors -> those that are wanted.

    Raises:
        ValueError: there are no safetensors, or they cannot be read.
    """
    (pattern,) = SAFE
    folder = _folder(path, pattern + INDEX)
    indices = list(folder.glob(pattern + INDEX))
    if len(indices) == 1:
        places = _weight_map(indices[0])
        wanted = choose(list(places))
        files = sorted({places[name] for name in wanted})
        folder = _folder(path, *files)
        return {name: part for file in files for name, part in _some_of(folder / file, set(wanted)).items()}
    found = _files_of(_folder(path, pattern), SAFE)
    if not found:
        raise ValueError(f"expected weights in {path!r}, got none; {pattern} are read")
    return _some_of(found[0], set(choose(_names_in(found[0]))))


def require_finite(tensors: dict[str, Tensor], path: str) -> None:
    """Raises for weights that are no numbers: somebody saved what had not been loaded or had diverged.

    Example:
        >>> require_finite({"fc.weight": torch.tensor([1.0, float("nan")])}, "a/head")
        Traceback (most recent call last):
        ValueError: expected finite weights in 'a/head', got NaN or infinity in fc.weight; get the checkpoint anew
    """
    strange = [name for name, part in tensors.items() if part.is_floating_point() and not part.isfinite().all()]
    if strange:
        raise ValueError(
            f"expected finite weights in {path!r}, got NaN or infinity in {listed(strange)}; get the checkpoint anew"
        )


def _folder(path: str, *patterns: str) -> Path:
    """The folder itself, or one with those files of a hub id."""
    require_folder(path)
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"expected a folder or hub id, got {path!r}: {first_line(error)}; check its name") from error


def _files_of(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The one file of these names, or the files of an index. What a trainer left beside them is passed over."""
    found = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.name not in ASIDE)
    indices = [file for pattern in patterns for file in folder.glob(pattern + INDEX)]
    if len(indices) == 1:
        return [folder / name for name in sorted(set(_weight_map(indices[0]).values()))]
    if len(found) > 1:
        names = listed([file.name for file in found])
        raise ValueError(f"expected one file of weights in {str(folder)!r}, got {names}; take the others away")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file."""
    named = _json_of(index).get("weight_map")
    if not isinstance(named, dict):
        raise ValueError(f"expected a weight_map in {str(index)!r}, got none; get the file anew")
    return named


def _json_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a {file.name} in {str(file.parent)!r}, got {first_line(error)}; get it anew"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"expected fields in {str(file)!r}, got {type(found).__name__}; get it anew")
    return found


def _names_in(file: Path) -> list[str]:
    with _readable(file), safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _some_of(file: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    with _readable(file), safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys() if name in wanted}  # noqa: SIM118


def _tensors_of(file: Path) -> dict[str, Tensor]:
    with _readable(file):
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict) or not all(isinstance(part, Tensor) for part in loaded.values()):
        raise ValueError(f"expected tensors by their names in {str(file)!r}, got {type(loaded).__name__}; save those")
    return loaded


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """While inside, what is wrong with a file is said in one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected tensors only in {str(file)!r}, got a pickle with other things; ask for safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(
            f"expected readable weights in {str(file)!r}, got {first_line(error)}; get the file anew"
        ) from error
