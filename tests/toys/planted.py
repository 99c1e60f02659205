"""Copies of the kernels in which a mistake was planted."""

from tests.project import ROOT


def copy_kernels(folder, name, module=None, old="", new=""):
    """Copies them to the package `name` in a folder that is on the path, one module changed; returns the name."""
    (folder / name).mkdir()
    for path in (ROOT / "kernels").glob("*.py"):
        text = path.read_text()
        if path.stem == module:
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
            text = text.replace(old, new)
        (folder / name / path.name).write_text(text)
    return name
