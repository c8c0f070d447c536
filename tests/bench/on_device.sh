#!/usr/bin/env bash
# The first thing to run on a lent CUDA device: the tests with label gpu, then the rows D1 and D4.
#
#   tests/bench/on_device.sh [OUT]     OUT: folder for what it prints, default out/device
#
# Wants the programs of the CUDA build in build-cuda/bin (cmake --build --preset cuda --target
# block_sparse_cuda_test contract_test gpu_bench) and nothing else of that build: where LibTorch's
# folder of the building machine is missing, the libraries of a Python environment with the same torch
# take its place. Goes on after a failure, so that one run on the device tells all; exit 1 if any.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly bin=build-cuda/bin out="${1:-out/device}"
mkdir -p "$out"

# Rpaths come first, folders that do not exist are passed over, then this is searched.
readonly torch="$(python3 -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent)' 2>/dev/null)"
if [ -n "$torch" ]; then
  nvidia="$(printf '%s:' "$torch"/../nvidia/*/lib)"
  export LD_LIBRARY_PATH="$torch/lib:$nvidia${LD_LIBRARY_PATH:-}"
fi
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv | tee "$out/device.txt"

failed=0
step() {  # NAME COMMAND...
  local name="$1"
  shift
  echo "== $name"
  timeout 300 "$@" >"$out/$name.txt" 2>&1 || { failed=1; echo "   failed, see $out/$name.txt"; }
  tail -n 12 "$out/$name.txt"
}
step kernels "$bin/block_sparse_cuda_test"
step contract "$bin/contract_test" '--gtest_filter=Cuda/*:*Cuda*' --gtest_brief=1
step d4 "$bin/gpu_bench" D4
step d1 "$bin/gpu_bench" D1
exit "$failed"
