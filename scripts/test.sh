#!/usr/bin/env bash
# Style, types and all tests, in the project's own .venv. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
pyright
python -m pytest "$@"
