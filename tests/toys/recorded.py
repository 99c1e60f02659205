"""What a CUDA graph does, on a CPU: the ops of a function, recorded once and run again on the very same memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdec import capture, target

aten = torch.ops.aten
# A GPU would have to be waited for: the host needs a number, or a shape depends on one.
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class Recorder(TorchDispatchMode):
    """Records what runs inside; `replay` runs it again. Results are written to where they were the first time."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        by_mask = op in INDEXED and any(t is not None and t.dtype == torch.bool for t in args[1])
        if op in WAITS or by_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {op}")
        result = op(*args, **kwargs)
        self.ops.append((op, args, kwargs, result))
        return result

    def replay(self):
        with torch.inference_mode():
            for op, args, kwargs, result in self.ops:
                given = {leaf.untyped_storage().data_ptr() for leaf in tensors((args, kwargs))}
                outputs = tensors(result)
                is_view = bool(outputs) and all(out.untyped_storage().data_ptr() in given for out in outputs)
                if is_view and not op._schema.is_mutable:
                    continue  # the same memory
                for out, new in zip(outputs, tensors(op(*args, **kwargs)), strict=True):
                    if out.data_ptr() != new.data_ptr():
                        out.copy_(new)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def record(function, memory, device):
    """As `capture.record`."""
    with Recorder() as recorder:
        output = function()
    return recorder.replay, output


def rerun(function, memory, device):
    """As `capture.record`, for bodies that look at the host: the function itself runs again, for other contents."""
    output = function()
    return lambda: output.copy_(function()), output


@pytest.fixture
def recording(monkeypatch):
    """Graphs are recorded on the CPU."""
    monkeypatch.setattr(capture, "record", record)
    monkeypatch.setattr(target, "only_gpu_of", lambda model: torch.device("cpu"))
