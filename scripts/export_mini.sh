#!/usr/bin/env bash
# The quickstart's model as models/mini: what README's first commands, the demo and the notebook use.
# Usage: bash scripts/export_mini.sh [exp_id [key value ...]]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exp_id=${1:-quickstart}
shift || true
python generations/export.py --config configs/mini/stage2.yaml exp_id "$exp_id" --out models/mini "$@"
