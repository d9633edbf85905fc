#!/usr/bin/env bash
# The whole method on the mini world, on a laptop without a GPU. First a caption and a picture by the model in models/mini;
# then the road from nothing: draw the mini world, prepare it, train both stages, caption, paint and score the test split
# after each, and write models/<exp_id>/{summary.json,report.html}.
# Usage: bash scripts/quickstart.sh [exp_id [key value ...]]; the keys go to both stages.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exp_id=${1:-quickstart}
shift || true
started=$SECONDS
step() { printf '\n== %s (after %d s)\n' "$1" $((SECONDS - started)); }

step "a caption and a picture by models/mini"
python generations/inference.py --config models/mini/config.yaml --image models/mini/examples/2.png
python generations/sample_images.py --config models/mini/config.yaml --caption "two small red birds fly over the sea"

# The causal way learns all words of a caption at once (docs/causal.md). Its captions need fewer iterations than
# pictures, so two of three paint.
common=(captioning causal "$@")
stage1=(--config configs/mini/stage1.yaml exp_id "${exp_id}_stage1" solver.lr 1e-3 scheduler.max_steps 2100
  iteration_tasks "['xe_i2t','xe_t2i','xe_t2i']" test_interval 0 "${common[@]}")
stage2=(--config configs/mini/stage2.yaml exp_id "$exp_id" scheduler.max_steps 180 test_interval 0 "${common[@]}")

samples_and_scores() {
  python generations/inference.py "$@" test_num -1     # image -> text
  python generations/sample_images.py "$@" test_num -1 # text -> image
  python generations/evaluate.py "$@" test_num -1 eval_rprec 1 eval_rprec_hard 1 --per-item \
    --caption-metrics cider_d,bleu,rouge_l,diversity,clip_score
}

# Two jobs run beside each other, each on half of the cores: networks as small as these gain little from more.
half=$((cores > 3 ? cores / 2 : 1))
pid=""
# what runs beside ends with the script
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || true' EXIT
beside() { # COMMAND...: runs it behind the next step; its output goes to a file
  log=models/$exp_id.beside.log
  mkdir -p models
  OMP_NUM_THREADS=$half "$@" >"$log" 2>&1 &
  pid=$!
}
finish() { # waits for what runs beside
  wait "$pid" || { tail -n 40 "$log" >&2; exit 1; }
  pid=""
  rm "$log"
}

step "the mini world: pictures, captions, features, codebook"
python generations/prepare.py mini-world,captions,features,clusters "${stage1[@]}"

step "stage 1; beside it the image generator and a small CLIP"
beside python generations/prepare.py generator,clip "${stage1[@]}"
OMP_NUM_THREADS=$half python generations/main.py "${stage1[@]}"
finish

step "stage 2; beside it captions, pictures and scores of stage 1"
beside samples_and_scores "${stage1[@]}"
checkpoint=$(ls "models/${exp_id}_stage1"/model_*.pth | sort | tail -n 1)
python generations/main.py "${stage2[@]}" load_model_only 1 model_path "$checkpoint"
finish

step "captions, pictures and scores of stage 2"
samples_and_scores "${stage2[@]}"
python generations/report.py "${stage2[@]}" --stage1 "${exp_id}_stage1" --seconds $((SECONDS - started))

step "done: open models/$exp_id/report.html"
