"""Freed memory stays with the process."""

import os
import subprocess
import sys

import pytest

from generations.runtime.memory import keep_freed_memory

# page faults of the last 10 of 40 steps that make and free the same large array; how soon freed
# memory is used again depends on where the C library put it
STEPS = """
import resource, sys
import torch
from generations.runtime.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(40):
    torch.ones(2**24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
sys.stdout.write(str(faults[-1] - faults[-11]))
"""


def faults(what: str) -> int:
    # glibc's own limits, whatever the environment of the tests says
    variables = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", STEPS, what]
    return int(subprocess.run(command, env=variables, capture_output=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(not keep_freed_memory(), reason="the C library cannot keep freed memory")
def test_later_steps_take_the_memory_of_earlier_ones():
    # 64 MB are 16,384 pages, or 32 huge ones
    assert faults("give back") > 10 * faults("keep")
