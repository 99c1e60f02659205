"""Where the sources are, for the tests that read them."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "specdec"
FOLDERS = ("draft_models", "verifiers", "kernels", "experiments")  # linked into the package


def package_files(pattern):
    """Every file of the package with such a name, the linked folders included, as paths below `specdec/`."""
    found = {
        path
        for folder in (PACKAGE, *(PACKAGE / name for name in FOLDERS))  # rglob does not follow links by itself
        for path in folder.rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    return sorted(found)


def module_name(path):
    """The name a file of the package is imported by: `specdec.kernels.ops`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
