#!/usr/bin/env bash
# Every figure that needs a GPU, in one command of at most 8 minutes: bash benchmarks/run_gpu.sh [FOLDER]
# Needs jax with CUDA, flax, optax, orbax, einops, jaxtyping, torch and timm; not grain, tensorflow-datasets or
# ml-collections. FOLDER/DATE_TIME (FOLDER: benchmarks/results) gets tables as .txt and figures as .json. PYTHON and TORCH_PYTHON
# name other interpreters. What is most wanted comes first; what time does not allow is said to be left out.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}/$(date +%Y-%m-%d_%H-%M-%S) # of its own, so that nothing old looks new
out=$(mkdir -p "$out" && cd "$out" && pwd)
python=${PYTHON:-python3}
torch=${TORCH_PYTHON:-$python}
limit=${LIMIT_S:-480}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/.compiled} XLA_PYTHON_CLIENT_PREALLOCATE=false
begun=$SECONDS

run() { # NAME MOST_SECONDS COMMAND…
  local name=$1 most=$2 left=$((limit - SECONDS + begun))
  shift 2
  if ((left < 20)); then
    echo "== $name: left out, no time" | tee -a "$out/left_out.txt"
    return
  fi
  echo "== $name"
  timeout -k 5 $((left < most ? left : most)) "$@" 2>"$out/$name.log" | tee "$out/$name.txt"
  local code=${PIPESTATUS[0]}
  if ((code == 124)); then
    echo "== $name: stopped, out of time" | tee -a "$out/left_out.txt"
  elif ((code)); then
    echo "== $name failed: $(tail -n 1 "$out/$name.log")" | tee -a "$out/left_out.txt"
  fi
}

step() { # SIZE BATCH MORE…
  local name=step_$1
  run "$name" 150 "$python" benchmarks/model_step.py --torch_python="$torch" --model="deit_$1_patch16_224" --batch="$2" \
    --rounds=3 --seconds=0.5 --output="$out/$name.json" "${@:3}"
}

run device 60 "$python" -c "import jax; print(jax.__version__, jax.devices())"
run attention 60 "$python" benchmarks/attention.py --rounds=3 --output="$out/attention.json"
# the contestants share the GPU's memory, so batches are small; whether 1024 fits is asked of ours alone
step base 128 --variant=model.attention=cudnn
step small 256 --variant=model.attention=cudnn
run fits 70 env XLA_PYTHON_CLIENT_PREALLOCATE=true XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 "$python" \
  benchmarks/model_step.py --model=deit_base_patch16_224 --batch=1024 --contestants=ours --rounds=1 --output="$out/fits.json"
run teacher 120 "$python" benchmarks/teacher.py --rounds=3 --seconds=0.5 --output="$out/teacher.json"
run augment 40 "$python" benchmarks/augment.py --batch=512 --policies=rand --output="$out/augment.json"
step tiny 512
run profile 60 "$python" benchmarks/profile_step.py --model=deit_small_patch16_224 --batch=256 --output="$out/profile.json"
echo "done in $((SECONDS - begun)) s; results in $out"
