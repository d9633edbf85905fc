#!/usr/bin/env bash
# The whole road on the mini world, on a laptop without a GPU: render it, prepare it, train both stages,
# paint and caption the test split after each, score, and write models/<exp_id>/{summary.json,report.html}.
# Usage: bash scripts/quickstart.sh [exp_id [key value ...]]; the keys go to both stages.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exp_id=${1:-quickstart}
shift || true
started=$SECONDS
stage1=(--config configs/mini/stage1.yaml exp_id "${exp_id}_stage1" "$@")
stage2=(--config configs/mini/stage2.yaml exp_id "$exp_id" "$@")

samples_and_scores() {
  python generations/inference.py "$@" test_num -1     # image -> text
  python generations/sample_images.py "$@" test_num -1 # text -> image
  python generations/evaluate.py "$@" test_num -1 eval_rprec 1 eval_rprec_hard 1 --per-item \
    --caption-metrics cider_d,bleu,rouge_l,diversity,clip_score
}

python generations/prepare.py mini-world "${stage1[@]}"
python generations/prepare.py all "${stage1[@]}"
python generations/main.py "${stage1[@]}"
samples_and_scores "${stage1[@]}"
checkpoint=$(ls "models/${exp_id}_stage1"/model_*.pth | sort | tail -n 1)
python generations/main.py "${stage2[@]}" load_model_only 1 model_path "$checkpoint"
samples_and_scores "${stage2[@]}"
python generations/report.py "${stage2[@]}" --stage1 "${exp_id}_stage1" --seconds $((SECONDS - started))

echo "done in $((SECONDS - started)) s: open models/$exp_id/report.html"
