#!/usr/bin/env bash
# The first thing to run on a lent CUDA device: the tests with label gpu, then the rows D0 to D5.
#
#   tests/bench/on_device.sh [OUT]     OUT: folder for what it prints, default out/device
#
# Wants the programs of the CUDA build in build-cuda/bin (cmake --build --preset cuda --target
# block_sparse_cuda_test contract_test gpu_bench) and nothing else of that build: where LibTorch's
# folder of the building machine is missing, the libraries of a Python environment with the same torch
# take its place. Stripped, the programs are a few MB each (strip build-cuda/bin/*). FlashAttention-3 is
# measured where its wheel is in build-cuda/wheels (pip download --no-deps -d build-cuda/wheels
# fa3-fwd==0.0.3) and the building machine's cache had the path that this one has. Goes on after a failure,
# so that one run on the device tells all; exit 1 if any.
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
# FlashAttention-3's library is too large to travel as it is; its wheel is not.
readonly cuda_wheels="${DENOISED_CACHE:-$HOME/.cache/denoised}/libtorch-2.11.0-cuda"
for wheel in build-cuda/wheels/fa3_fwd-*.whl; do
  [ ! -e "$wheel" ] || [ -e "$cuda_wheels/fa3_fwd" ] || python3 -m zipfile -e "$wheel" "$cuda_wheels"
done
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
for row in D4 D5 D3 D2 D1 D0; do step "$row" "$bin/gpu_bench" "$row"; done
exit "$failed"
