"""The command that writes a head in another layout."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Device, Dtype, Target, quiet_transformers
from .draft_models.head_writing import LAYOUTS, new_place, write_head
from .experiments.loading import load_target
from .methods import load_head, paged


def convert(
    head: Annotated[str, typer.Argument(help="Folder or hub id of the head.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    layout: Annotated[str, typer.Option("--to", help=f"{', '.join(LAYOUTS)}.")],
    target: Target = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Write a head in another layout: speculators format for vLLM, or that of EAGLE, EAGLE-3 or Medusa."""
    new_place(out)
    if layout not in LAYOUTS:
        raise ValueError(f"expected --to {', '.join(LAYOUTS)}, got {layout!r}; pick one of them")
    with quiet_transformers(), _warnings_told():
        model = load_target(target, dtype, device)
        found = load_head(head, paged(model))
        files = write_head(found.network, out, layout, model.config)
    layers = ", ".join(map(str, found.network.feature_layers))
    typer.echo(f"written: {out}, {len(files.tensors)} tensors, from {found.layout}; reads the target's layers {layers}")


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Says each warning in one line."""
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for notice in noticed:
                typer.echo(f"warning: {notice.message}", err=True)
