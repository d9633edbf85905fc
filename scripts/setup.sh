#!/usr/bin/env bash
# Makes .venv with everything the project needs, and activates it. Meant to be sourced; a second call
# installs only what changed. PYTHON names the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(cat requirements.txt tests/requirements.txt pyproject.toml | cksum)
if [ "$(cat .venv/.installed 2>/dev/null || true)" != "$wanted" ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON")'
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
  echo "$wanted" >.venv/.installed
fi
# shellcheck source=/dev/null
source .venv/bin/activate
# cores that may be used; nproc is not everywhere, and heeds OMP_NUM_THREADS
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
