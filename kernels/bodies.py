"""Which body an op runs: `SPECDEC_KERNELS=reference|triton`, by default Triton on a GPU and the reference elsewhere."""

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

BODIES = ("reference", "triton")
ASKED_FOR = os.environ.get("SPECDEC_KERNELS")  # read once, as Triton reads its own: an op is called for every layer
DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # of rows that kernels take
HAS_TRITON = find_spec("triton") is not None


def body_of(tensor: Tensor) -> str:
    """The body for arguments like `tensor`. What was asked for is run or refused, never replaced.

    Raises:
        ValueError: there is no such body, or it cannot run here.

    Example:
        >>> body_of(torch.zeros(1))
        'reference'
    """
    if not ASKED_FOR and not tensor.is_cuda:
        return "reference"
    body = ASKED_FOR or "triton"
    if body not in BODIES:
        raise ValueError(f"expected SPECDEC_KERNELS=reference or triton, got {body!r}; unset it for the usual choice")
    if body == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"expected tensors on a GPU for SPECDEC_KERNELS=triton, got {tensor.device}; "
            f"set TRITON_INTERPRET=1 to interpret the kernels, or SPECDEC_KERNELS=reference"
        )
    if body == "triton" and not HAS_TRITON:
        raise ValueError("expected triton for tensors on a GPU, got none; install it, or set SPECDEC_KERNELS=reference")
    return body


def is_reference(rows: Tensor) -> bool:
    """Whether the reference is to be run; the kernels compute in float32, and do not round wider rows unasked."""
    if body_of(rows) == "reference":
        return True
    if rows.dtype not in DTYPES:
        raise ValueError(f"expected rows of float32 or half of it, got {rows.dtype}; use SPECDEC_KERNELS=reference")
    return False


def current(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of `tensor` the current one, on which Triton launches."""
    is_elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if is_elsewhere else nullcontext()
