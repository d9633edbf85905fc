#!/usr/bin/env bash
# Compute the metrics of the captions and pictures that scripts/infer.sh made.
# Usage: bash scripts/evaluate.sh EXP_ID [key value ...], for example eval_fid 0 eval_rprec 1
# CONFIG names the configuration. For the mini world:
#   CONFIG=configs/mini/stage1.yaml bash scripts/evaluate.sh my_stage1
set -euo pipefail
cd "$(dirname "$0")/.."
exp_id=${1:?usage: bash scripts/evaluate.sh EXP_ID [key value ...]}
shift
exec python generations/evaluate.py --config "${CONFIG:-configs/coco/stage1.yaml}" exp_id "$exp_id" test_num -1 "$@"
