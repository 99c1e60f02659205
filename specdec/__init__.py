"""Speculative decoding for PyTorch and Hugging Face models: the same text, sooner."""

from .generation import Speculation, generate, speculate
from .methods import load_drafter
from .target import PagedModel
from .tree import TokenTree
from .types import Draft, Exactness, TargetRows, Verdict
from .zoo import load_embedded

__all__ = [
    "Draft",
    "Exactness",
    "PagedModel",
    "Speculation",
    "TargetRows",
    "TokenTree",
    "Verdict",
    "generate",
    "load_drafter",
    "load_embedded",
    "speculate",
]
__version__ = "0.1.0"
