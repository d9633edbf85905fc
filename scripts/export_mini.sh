#!/usr/bin/env bash
# Export the quickstart's model to models/mini, which the README, the demo and the notebook use.
# Usage: bash scripts/export_mini.sh [exp_id [key value ...]]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exp_id=${1:-quickstart}
shift || true
python generations/export.py --config configs/mini/stage2.yaml exp_id "$exp_id" --out models/mini "$@"
