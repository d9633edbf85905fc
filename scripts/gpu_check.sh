#!/usr/bin/env bash
# Run everything that needs a GPU: the tests in tests/gpu and benchmarks/gpu.py. Write the results into a folder.
# Usage: [PYTHON=python3] [DEVICE=cuda] bash scripts/gpu_check.sh [FOLDER [options of benchmarks/gpu.py]]
# It uses the Python named by PYTHON, makes no .venv and installs nothing; torch, torchvision, yacs, tokenizers, h5py,
# tensorboard, tqdm, scipy and pytest must be installed. docs/gpu.md explains the results.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
folder=${1:-gpu_check}
shift || true
mkdir -p "$folder"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 TOKENIZERS_PARALLELISM=false

{
  date -u
  git rev-parse HEAD 2>/dev/null
  "$python" --version
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())'
  "$python" - <<'PY'
from importlib import metadata, util
for name in ("torchvision", "triton", "yacs", "tokenizers", "h5py", "scipy", "open_clip", "faiss", "pycocoevalcap"):
    try:
        there = util.find_spec(name) is not None
    except ImportError:
        there = False
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = "of another name"
    print(name, version if there else "absent")
PY
  command -v nvidia-smi >/dev/null && nvidia-smi
} >"$folder/machine.txt" 2>&1

echo "benchmark ..."
"$python" benchmarks/gpu.py --device "$device" --out "$folder/benchmark.json" "$@" >"$folder/benchmark.txt" 2>&1
measured=$?
cat "$folder/benchmark.txt"
echo "tests ..."
TEST_DEVICE=$device "$python" -m pytest tests/gpu -q -p no:cacheprovider --durations 10 >"$folder/tests.txt" 2>&1
tested=$?
tail -n 40 "$folder/tests.txt"
echo "benchmark: status $measured, tests: status $tested, results in $folder" | tee "$folder/status.txt"
[ "$measured" = 0 ] && [ "$tested" = 0 ]
