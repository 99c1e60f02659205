"""Kernels built for a named GPU on a machine without one: the wrappers run up to the launch, the assembly is read."""

import re
import subprocess
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # of a processor, for one program (CUDA C++ programming guide, table 29)
REGISTERS = 65536  # of a processor
RESERVED_BYTES = 1024  # of shared memory, by each program that is there
TENSOR_CORES = r"HMMA|HGMMA|QGMMA|UTC\w*MMA"
ASYNCHRONOUS = r"LDGSTS|UTMALDG"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*)")


class Driver:
    """Stands in for Triton's driver: says what the target is, and never launches."""

    def __init__(self, capability):
        self.capability = capability

    @classmethod
    def is_active(cls):
        return True

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # by which builds are kept: those of another target are not taken

    def get_current_stream(self, device=None):
        return 0


@contextmanager
def building(capability, monkeypatch):
    """Gives a list to which every launch within the block adds what it would have launched, as a Build."""
    builds, previous = [], getattr(driver, "_active", None)

    def build(kernel, grid):
        return lambda *arguments, **options: builds.append(
            Build(kernel.__name__, kernel.warmup(*arguments, grid=grid, **options))
        )

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "__getitem__", build)
        driver.set_active(Driver(capability))
        try:
            yield builds
        finally:
            driver._active = previous


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop, by name up to the first dot."""

    counts: Counter

    def count(self, pattern):
        return sum(number for name, number in self.counts.items() if re.fullmatch(pattern, name))


@dataclass
class Build:
    """A kernel as the GPU would get it."""

    name: str
    kernel: object

    @property
    def shared(self):
        """Bytes of shared memory."""
        return self.kernel.metadata.shared

    @cached_property
    def registers(self):
        """Registers of a thread."""
        return int(re.search(r"REG:(\d+)", self._tool("cuobjdump", "-res-usage"))[1])

    @cached_property
    def assembly(self):
        return self._tool("nvdisasm", "-c")

    @property
    def num_resident(self):
        """How many programs a processor of compute capability 9.0 or 8.0 holds."""
        threads = 32 * self.kernel.metadata.num_warps
        by_registers = REGISTERS // (threads * -(-self.registers // 8) * 8)
        limit = SHARED_BYTES[self.kernel.metadata.target.arch] + RESERVED_BYTES
        return min(by_registers, limit // (self.shared + RESERVED_BYTES))

    @property
    def num_buffers(self):
        """Of tiles in shared memory that the pipeliner made room for, the most of any operand."""
        found = re.findall(r"ttg\.local_alloc[^\n]*?!ttg\.memdesc<(\d+)x\d+x\d+x[a-z0-9]+", self.kernel.asm["ttgir"])
        return max(map(int, found), default=1)

    def has(self, pattern):
        return re.search(pattern, self.assembly) is not None

    def tile_loop(self):
        """The shortest loop with both tensor-core instructions and asynchronous copies; None without one."""
        places, names, loops = {}, [], []
        for line in self.assembly.splitlines():
            if label := re.match(r"\s*(\.L_\w+):", line):
                places[label[1]] = len(names)
            elif found := INSTRUCTION.search(line):
                names.append(found[1].split(".")[0].rstrip(";"))
                target = re.search(r"\.L_\w+", found[2]) if names[-1] == "BRA" else None
                if target and target[0] in places:
                    loops.append(Loop(Counter(names[places[target[0]] :])))
        loops = [loop for loop in loops if loop.count(TENSOR_CORES) and loop.count(ASYNCHRONOUS)]
        return min(loops, key=lambda loop: loop.counts.total(), default=None)

    def _tool(self, name, *options):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.kernel.asm["cubin"])
            file.flush()
            command = [TOOLS / name, *options, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
