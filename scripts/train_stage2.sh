#!/usr/bin/env bash
# Stage 2, sequence-level training from a stage-1 checkpoint, as in the paper: 8 GPUs x 20 samples, 500,000
# iterations on COCO. The same command again continues from the run's newest checkpoint.
# Usage: bash scripts/train_stage2.sh EXP_ID CHECKPOINT [key value ...]
# Set NUM_GPUS, MASTER_PORT and CONFIG as environment variables. For the mini world on two CPU processes:
#   NUM_GPUS=2 CONFIG=configs/mini/stage2.yaml bash scripts/train_stage2.sh my_stage2 models/my_stage1/model_0005000.pth
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: bash scripts/train_stage2.sh EXP_ID CHECKPOINT [key value ...]"
exp_id=${1:?$usage}
checkpoint=${2:?$usage}
shift 2
exec python -m torch.distributed.run --nproc_per_node="${NUM_GPUS:-8}" --master_port="${MASTER_PORT:-4396}" \
  generations/main.py --config "${CONFIG:-configs/coco/stage2.yaml}" exp_id "$exp_id" \
  load_model_only 1 resume_from_latest 1 model_path "$checkpoint" "$@"
