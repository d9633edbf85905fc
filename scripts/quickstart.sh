#!/usr/bin/env bash
# The whole road on the mini world, on a laptop without a GPU: render it, prepare it, train stage 1,
# paint and caption the test split, score, and write models/<exp_id>/{summary.json,report.html}.
# Usage: bash scripts/quickstart.sh [exp_id [key value ...]]
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exp_id=${1:-quickstart}
shift || true
started=$SECONDS
run=(--config configs/mini/stage1.yaml exp_id "$exp_id" "$@")

python generations/prepare.py mini-world "${run[@]}"
python generations/prepare.py all "${run[@]}"
python generations/main.py "${run[@]}"
python generations/inference.py "${run[@]}" test_num -1     # image -> text
python generations/sample_images.py "${run[@]}" test_num -1 # text -> image
python generations/evaluate.py "${run[@]}"
python generations/report.py "${run[@]}" --seconds $((SECONDS - started))

echo "done in $((SECONDS - started)) s: open models/$exp_id/report.html"
