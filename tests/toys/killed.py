"""Runs a command again and again, and kills it each time: `python -m tests.toys.killed '{"seed": 0, ...}' words...`.

The command runs in forks of this process, so that a kill costs no import. Half of the kills come at a random time, half
when a random part of a line has been written.
"""

import json
import os
import random
import signal
import sys
import time

import torch

from specdec import cli
from specdec.experiments.bench import store

LONGEST = 1.5  # seconds until a kill


def torn(chance):
    """Appending writes a random part of the line, the first or one of the next, and kills."""
    left = [chance.randrange(4)]

    def append(self, record):
        line = store.sealed(record)
        if left[0] == 0:
            os.write(self._file.fileno(), line[: chance.randrange(len(line) + 1)])
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        honest(self, record)

    honest = store.RecordFile.append
    store.RecordFile.append = append


def run(words, chance=None):
    """The exit code of one run in a fork; negative if it was killed."""
    is_torn, seconds = (False, None) if chance is None else (chance.random() < 0.5, chance.uniform(0, LONGEST))
    child = os.fork()
    if child == 0:
        if is_torn:
            torn(chance)
        sys.argv[1:] = words
        cli.main()
        os._exit(0)
    if seconds is not None and not is_torn:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    settings, words = json.loads(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    chance = random.Random(settings["seed"])
    codes = [run(words, chance) for _ in range(settings["kills"])]
    print(json.dumps({"codes": codes, "last": run(words)}))
