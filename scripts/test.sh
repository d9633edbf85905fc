#!/usr/bin/env bash
# Style, types and all tests, in the project's own .venv. Arguments go to pytest; with --fast, which comes
# first, it runs tests/unit and tests/parity without what is marked slow.
# By variable: TEST_PROCESSES, each on one core and with whole files. By default one more than there are cores, at most 8, as tests of
# several processes wait a good deal; 0: one after the other, in this process.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
pyright
processes=${TEST_PROCESSES:-$((cores < 8 ? cores + 1 : 8))}
# threads of several processes would wait for each other
export OMP_NUM_THREADS=1
if [ "${1:-}" = --fast ]; then
  shift
  set -- tests/unit tests/parity -m "not slow" "$@"
fi
# in the order of folders: e2e, whose tests take longest, comes first
python -m pytest -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
