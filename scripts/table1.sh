#!/usr/bin/env bash
# Table 1 of the paper: train every row in both stages, caption and paint the test split, compute the metrics, and
# write the table to models/table1_<size>/table1.{md,html,tex}. The same command again continues where it stopped.
# Usage: bash scripts/table1.sh [mini|coco] [SEED ...]     (default: mini, seeds 1 2 3)
# mini: about an hour and a half a seed on one CPU core; run scripts/quickstart.sh first, which makes the data.
# coco: NUM_GPUS=8 bash scripts/table1.sh coco 1; takes about four times the training of the paper's model.
# Environment variables: ROWS="ours dense" (only these rows), OPTIONS="device cpu" (for every command; quote paths in it),
# FOLDER (where to write), METRICS=cider_d,bleu (fewer caption metrics), MASTER_PORT.
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-mini}
shift || true
seeds=("${@:-1 2 3}")
rows=${ROWS:-ours no_clip captions_only pictures_only dense discrete}
folder=${FOLDER:-models/table1_$size}
eval "everywhere=(${OPTIONS:-})" # words as in a shell, so that a path may hold spaces
launcher=(python)
if ((${NUM_GPUS:-1} > 1)); then
  launcher=(python -m torch.distributed.run --nproc_per_node="$NUM_GPUS" --master_port="${MASTER_PORT:-4396}")
fi

# run ROW STAGE SEED [key value ...]: train, sample in the directions that the row is for, score
run() {
  local exp_id=$1_stage$2_seed$3
  local options=(--config "configs/table1/$size/$1_stage$2.yaml" exp_id "$exp_id" save_dir "$folder" seed "$3")
  shift 3
  # scored last: what has its figures is done
  if compgen -G "$folder/$exp_id/metrics_*_test_*.json" >/dev/null; then return; fi
  "${launcher[@]}" generations/main.py "${options[@]}" test_interval 0 "$@" "${everywhere[@]}"
  options+=(test_num -1)
  if [[ $exp_id != pictures_only* ]]; then python generations/inference.py "${options[@]}" "${everywhere[@]}"; fi
  if [[ $exp_id != captions_only* ]]; then python generations/sample_images.py "${options[@]}" "${everywhere[@]}"; fi
  python generations/evaluate.py "${options[@]}" eval_rprec 1 eval_rprec_hard 1 "${everywhere[@]}" \
    --caption-metrics "${METRICS:-cider_d,bleu,meteor,rouge_l,diversity}"
}

for seed in ${seeds[@]}; do
  for row in $rows; do
    start=$row
    if [[ $row == no_clip ]]; then start=ours; fi # it shares stage 1 with ours
    run "$start" 1 "$seed"
    checkpoint=$(ls "$folder/${start}_stage1_seed$seed"/model_*.pth | sort | tail -n 1)
    run "$row" 2 "$seed" load_model_only 1 resume_from_latest 1 model_path "$checkpoint"
    python generations/report.py --table1 "$folder"
  done
done
