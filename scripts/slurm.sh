#!/usr/bin/env bash
#SBATCH --job-name=generations
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Train under SLURM, with one task a GPU. Five minutes before the time limit, or when the job is preempted, the run
# saves and the job is requeued. It is also requeued when a process is lost. Wrong input ends the job, and so do
# three starts in a row (MAX_IDLE) without a new checkpoint.
# Usage, in the checkout: sbatch [--nodes=2 ...] scripts/slurm.sh EXP_ID [key value ...]
# Environment variables: CONFIG (configs/coco/stage1.yaml), PYTHON (python), MAX_RESTARTS (100), MAX_IDLE (3).
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}" || exit 2
exp_id=${1:?usage: sbatch scripts/slurm.sh EXP_ID [key value ...]}
shift
if [ ! -f generations/main.py ]; then
  echo "error: $PWD is not the checkout: run sbatch in the checkout" >&2
  exit 2
fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) PYTHON=${PYTHON:-python}
# the signals are for the tasks; the script continues, to requeue the job
trap 'interrupted=1' TERM USR1

# shellcheck disable=SC2016 # the variables are those of each task
srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec "$PYTHON" generations/main.py "$@"' \
  _ --config "${CONFIG:-configs/coco/stage1.yaml}" exp_id "$exp_id" "$@" &
step=$!
while interrupted=; do
  wait "$step"
  status=$?
  [ -z "$interrupted" ] && break # otherwise a signal interrupted the wait
done

# the newest checkpoint after this start, and how many starts in a row ended with it
folder=models/$exp_id
while [ $# -gt 1 ]; do
  [ "$1" = save_dir ] && folder=$2/$exp_id
  shift
done
progress=$folder/.requeued
newest=$(find "$folder" -maxdepth 1 -name 'model_*' 2>/dev/null | sort | tail -n 1)
read -r idle before 2>/dev/null <"$progress" || idle=0
if [ "${before:-}" = "${newest:-none}" ]; then idle=$((idle + 1)); else idle=1; fi

case $status in
  75 | 76 | 137 | 143) # stopped and saved, another process lost, killed: see docs/operations.md
    if [ "$idle" -gt "${MAX_IDLE:-3}" ]; then
      echo "error: exit status $status, and $idle starts in a row saved no checkpoint: fix the error in the log, then submit again" >&2
    elif [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-100}" ]; then
      mkdir -p "$folder" && echo "$idle ${newest:-none}" >"$progress"
      echo "exit status $status: the job is requeued"
      scontrol requeue "$SLURM_JOB_ID"
      exit 0
    fi
    ;;
esac
rm -f "$progress"
exit "$status"
