"""Freed memory stays with the process."""

import os
import subprocess
import sys

import pytest

from generations.runtime.memory import keep_freed_memory

# page faults of the second of two steps that make and free the same large array
STEPS = """
import resource, sys
import torch
from generations.runtime.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
sys.stdout.write(str(faults))
"""


def faults(what: str) -> int:
    # glibc's own limits, whatever the environment of the tests says
    variables = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", STEPS, what]
    return int(subprocess.run(command, env=variables, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library cannot keep freed memory")
def test_a_second_step_takes_the_memory_of_the_first():
    # 64 MB are 16,384 pages, or 32 huge ones
    assert faults("give back") > 3 * faults("keep") + 16
