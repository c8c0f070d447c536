#!/usr/bin/env bash
# Installs what `denoised` needs on Debian 12. Safe to run again: what is there is reused, and an
# interrupted run leaves nothing that looks complete.
#
#   deploy/setup.sh [--build] [--cuda] [--tests] [--print-packages]
#
#   --build           what `make build` and `make demo` need (this is also the default)
#   --cuda            that, and the wheels that the CUDA build links and loads (preset "cuda", which
#                     needs nvcc as well; CUDA's own toolkit comes from the machine)
#   --tests           that, and what `make test` and `make bench` need: a Python environment with
#                     the reference implementations, Prometheus, ffmpeg, strace
#   --print-packages  print the Debian packages of the chosen sets and stop
#
# DENOISED_CACHE (default ~/.cache/denoised) holds what several clones share: LibTorch, the Python
# environment, the compiler cache. Packages come through apt-get and pip as this machine has them
# configured.
set -euo pipefail

readonly root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly cache="${DENOISED_CACHE:-$HOME/.cache/denoised}"
readonly torch_version=2.11.0
readonly libtorch="$cache/libtorch-$torch_version"
readonly cuda_wheels_dir="$libtorch-cuda"
# The system's own Python: another one first on PATH may lack venv or have other wheels.
readonly python="${DENOISED_PYTHON:-/usr/bin/python3}"

build_packages=(
  build-essential g++ cmake ninja-build make git mold ccache pkg-config
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev
  prometheus-cpp-dev libcivetweb-dev libcpp-httplib-dev libssl-dev zlib1g-dev
  nlohmann-json3-dev libutf8proc-dev libsqlite3-dev
  libavcodec-dev libavformat-dev libavutil-dev libswscale-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  python3 python3-venv python3-pip curl
)
test_packages=(prometheus ffmpeg clang-format strace)

# What torch 2.11.0 pins and libtorch_cuda links, then the headers and the kernels of our own backends.
cuda_wheels=(
  nvidia-cublas==13.1.0.3 nvidia-cuda-nvrtc==13.0.88 nvidia-cufft==12.0.0.61
  nvidia-cufile==1.15.1.6 nvidia-curand==10.4.0.35 nvidia-cusolver==12.0.4.66
  nvidia-cusparse==12.6.3.3 nvidia-nvjitlink==13.0.88
  nvidia-cudnn-cu13==9.19.0.56 nvidia-cusparselt-cu13==0.8.0 nvidia-nccl-cu13==2.28.9
  nvidia-nvshmem-cu13==3.4.5
  nvidia-cudnn-frontend==1.32.0 fa3-fwd==0.0.3
)

want_cuda=no
want_tests=no
print_only=no

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

usage() { sed -n '2,/^set -/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; }

parse_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --build) ;;
      --cuda) want_cuda=yes ;;
      --tests) want_tests=yes ;;
      --print-packages) print_only=yes ;;
      -h|--help) usage; exit 0 ;;
      *) usage >&2; fail "unknown option '$1'" ;;
    esac
    shift
  done
}

wanted_packages() {
  printf '%s\n' "${build_packages[@]}"
  [ "$want_tests" = no ] || printf '%s\n' "${test_packages[@]}"
}

missing_packages() {
  local package
  for package in $(wanted_packages); do
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
      printf '%s\n' "$package"
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    env "$@"
  elif command -v sudo >/dev/null; then
    sudo env "$@"
  else
    fail "need root for: $* (run as root, or install sudo)"
  fi
}

install_packages() {
  if ! command -v apt-get >/dev/null; then
    say "no apt-get here: expecting these to be installed: $(wanted_packages | tr '\n' ' ')"
    return
  fi
  local missing
  mapfile -t missing < <(missing_packages)
  if [ ${#missing[@]} = 0 ]; then
    say "Debian packages: all installed"
    return
  fi
  say "Debian packages: installing ${missing[*]}"
  as_root apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 update -qq
  # RUNLEVEL=1: Debian's prometheus would start a service of its own where there is no systemd; the
  # tests start theirs, on ports of their own.
  as_root DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=600 \
    -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install -y -qq --no-install-recommends \
    "${missing[@]}" >"$cache/log/apt.log" 2>&1 ||
    { tail -n 30 "$cache/log/apt.log" >&2; fail "apt-get failed, log: $cache/log/apt.log"; }
}

pip_install() {  # PYTHON LOG ARGUMENTS...
  local interpreter="$1" log="$2"
  shift 2
  "$interpreter" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --root-user-action=ignore "$@" >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; fail "pip failed, log: $log"; }
}

# LibTorch is the torch wheel without its Python dependencies, with the two CUDA libraries that
# libtorch_cpu itself links. It appears under its final name only when it is whole.
install_libtorch() {
  if [ -e "$libtorch/torch/lib/libtorch_cpu.so" ]; then
    say "LibTorch $torch_version: $libtorch"
    return
  fi
  say "LibTorch $torch_version: downloading to $libtorch (about 550 MB)"
  local staging="$libtorch.partial"
  rm -rf "$staging" "$libtorch"
  pip_install "$python" "$cache/log/libtorch.log" --no-deps --no-compile --target "$staging" \
    "torch==$torch_version" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*'
  mv "$staging" "$libtorch"
}

# Beside LibTorch and not in it: builds without CUDA need none of this. Appears whole or not at all.
install_cuda_wheels() {
  if [ -d "$cuda_wheels_dir" ]; then
    say "CUDA libraries: $cuda_wheels_dir"
    return
  fi
  say "CUDA libraries: downloading to $cuda_wheels_dir (about 2 GB)"
  local staging="$cuda_wheels_dir.partial"
  rm -rf "$staging"
  pip_install "$python" "$cache/log/cuda.log" --no-deps --no-compile --target "$staging" \
    "${cuda_wheels[@]}"
  mv "$staging" "$cuda_wheels_dir"
}

# The environment gets LibTorch's files as hard links: one download and one copy on disk serve both.
seed_torch() {  # VENV
  local site entry
  site="$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  for entry in torch torchgen functorch nvidia; do
    [ -d "$libtorch/$entry" ] || continue
    cp -al "$libtorch/$entry" "$site/" 2>/dev/null || cp -a "$libtorch/$entry" "$site/"
  done
  cp -a "$libtorch"/*.dist-info "$site/"
}

# A folder a version of the requirements; the marker says that it is complete.
install_test_environment() {
  local requirements="$root/tests/requirements.txt" hash venv
  hash="$({ cat "$requirements"; "$python" --version; } | sha256sum | cut -c1-12)"
  venv="$cache/venv-$hash"
  if [ ! -e "$venv/.complete" ]; then
    say "Python environment of the tests: building $venv (about 2 GB of downloads)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    seed_torch "$venv"
    pip_install "$venv/bin/python" "$cache/log/venv.log" -r "$requirements"
    "$venv/bin/python" -c 'import torch; torch.ones(2) @ torch.ones(2)' ||
      fail "the installed torch does not import, log: $cache/log/venv.log"
    touch "$venv/.complete"
  fi
  ln -sfn "venv-$hash" "$cache/venv"
  say "Python environment of the tests: $cache/venv -> $venv"
}

main() {
  parse_arguments "$@"
  if [ "$print_only" = yes ]; then
    wanted_packages
    return
  fi
  mkdir -p "$cache/log"
  exec 9>"$cache/.setup.lock"
  flock -n 9 || { say "waiting for another setup in $cache"; flock 9; }
  install_packages
  [ -x "$python" ] || fail "$python not found (set DENOISED_PYTHON)"
  install_libtorch
  [ "$want_cuda" = no ] || install_cuda_wheels
  [ "$want_tests" = no ] || install_test_environment
  say "done"
}

main "$@"
