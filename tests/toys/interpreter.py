"""Repairs of Triton's interpreter, for tests only: bfloat16, which it computes on as integers, and numpy 2.4.

The interpreter of Triton 3.6 to 3.9 keeps bfloat16 as uint16 bit patterns, and multiplies the patterns. With `repair`
`tl.dot` takes them as the numbers they are, float32 is rounded to them as a GPU does (to nearest, ties to even), and
any other arithmetic on them is an error: a kernel casts to float32 first.
"""

import numpy as np


def repair(monkeypatch):
    """Repairs the interpreter for as long as `monkeypatch` lasts."""
    from triton.runtime import interpreter  # not everywhere

    for name, method in _bfloat16_methods(interpreter).items():
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, method)
    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor, *rest):  # numpy 2.4 makes no int of an array of one dimension, which Triton 3.6 asks for
        result = patch_tensor(tensor, *rest)
        tensor.__index__ = lambda self: int(np.asarray(self.handle.data).item())
        return result

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def _bfloat16_methods(interpreter):
    import triton.language as tl

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    create_dot, cast_impl = builder.create_dot, builder.cast_impl

    def is_bfloat16(value):
        return isinstance(value, handle) and value.dtype.scalar == tl.bfloat16

    def dot(self, a, b, *rest):
        a, b = (handle(_widened(each.data), tl.float32) if is_bfloat16(each) else each for each in (a, b))
        return create_dot(self, a, b, *rest)

    def cast(self, source, to):
        before, after = source.dtype.scalar, to.scalar
        if before == after or tl.bfloat16 not in (before, after):
            return cast_impl(self, source, to)
        if after == tl.float32:
            return handle(_widened(source.data), after)
        if before == tl.float32:
            return handle(_rounded(source.data), after)
        return cast(self, cast(self, source, tl.float32), to)

    def guarded(operation):
        def refuse(self, *operands, **options):
            if any(map(is_bfloat16, operands)):
                raise TypeError("arithmetic on bfloat16, which the interpreter cannot do: cast to float32 first")
            return operation(self, *operands, **options)

        return refuse

    guards = {name: guarded(getattr(builder, name)) for name in ("binary_op", "unary_op")}
    return {"create_dot": dot, "cast_impl": cast, **guards}


def _widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded(numbers):
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), rounded)
