"""What a figure was measured with: versions, commit, hardware."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from specdec import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "triton", "numpy")


def environment() -> dict[str, Any]:
    """Versions, commit if the toolkit runs from a git checkout, hardware and threads, as plain values."""
    return {
        "specdec": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "devices": devices(),
    }


def devices() -> list[str]:
    """The names of the accelerators torch can use."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def cpu_name() -> str:
    """The processor's name for people; its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout this file lies in, with a plus if it was changed; None if it lies in none."""
    here = Path(__file__).resolve().parent
    # The folder of an installed wheel may lie inside somebody else's checkout: ask whether git knows this very file.
    known = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git(here, "rev-parse", "--short=12", "HEAD") if known else None
    changed = commit and _git(here, "status", "--porcelain", "--untracked-files=no", ":/")
    return f"{commit}+" if changed else commit


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
