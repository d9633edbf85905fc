#!/usr/bin/env bash
# Stage 1, token-level training, as in the paper: 8 GPUs x 32 samples, 200,000 iterations on COCO.
# Usage: bash scripts/train_stage1.sh EXP_ID [key value ...]
# Set NUM_GPUS, MASTER_PORT and CONFIG as environment variables. For the mini world on two CPU processes:
#   NUM_GPUS=2 CONFIG=configs/mini/stage1.yaml bash scripts/train_stage1.sh my_stage1
set -euo pipefail
cd "$(dirname "$0")/.."
exp_id=${1:?usage: bash scripts/train_stage1.sh EXP_ID [key value ...]}
shift
exec python -m torch.distributed.run --nproc_per_node="${NUM_GPUS:-8}" --master_port="${MASTER_PORT:-4396}" \
  generations/main.py --config "${CONFIG:-configs/coco/stage1.yaml}" exp_id "$exp_id" "$@"
