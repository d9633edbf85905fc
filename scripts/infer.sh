#!/usr/bin/env bash
# Caption and paint the test split with the newest checkpoint of a run.
# Usage: bash scripts/infer.sh EXP_ID [key value ...]
# Set NUM_GPUS, MASTER_PORT and CONFIG as environment variables. For the mini world on two CPU processes:
#   NUM_GPUS=2 CONFIG=configs/mini/stage1.yaml bash scripts/infer.sh my_stage1
set -euo pipefail
cd "$(dirname "$0")/.."
exp_id=${1:?usage: bash scripts/infer.sh EXP_ID [key value ...]}
shift
launch=(python -m torch.distributed.run --nproc_per_node="${NUM_GPUS:-8}" --master_port="${MASTER_PORT:-4396}")
run=(--config "${CONFIG:-configs/coco/stage1.yaml}" exp_id "$exp_id" test_num -1 "$@")
"${launch[@]}" generations/sample_images.py "${run[@]}" # text -> image
"${launch[@]}" generations/inference.py "${run[@]}"     # image -> text
