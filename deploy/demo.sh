#!/usr/bin/env bash
# From nothing to a video: installs what is missing, builds, starts a server on free ports, draws a
# prompt over gRPC, shows what ran and what was measured, stops the server.
#
#   deploy/demo.sh [--model_repository DIR] [--skip-build] [PROMPT]
#
# Writes out/demo.mp4, out/demo.gif and out/demo.png (a contact sheet of all frames).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly cache="${DENOISED_CACHE:-$HOME/.cache/denoised}"
prompt="a red circle moving left"
repository=""
skip_build=no
server_pid=""

say() { printf '\n== %s\n' "$*"; }

parse_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --model_repository) repository="$2"; shift ;;
      --skip-build) skip_build=yes ;;
      -h|--help) sed -n '2,/^set -/p' deploy/demo.sh | sed '$d; s/^# \{0,1\}//'; exit 0 ;;
      -*) echo "demo: unknown option '$1'" >&2; exit 2 ;;
      *) prompt="$1" ;;
    esac
    shift
  done
}

# The checkpoint that ships, or where it is absent a small one with random weights: its video is
# noise, but every part of the path is real.
choose_repository() {
  [ -z "$repository" ] || return 0
  if [ -e model_repository/shapes/model_index.json ]; then
    repository=model_repository
    return
  fi
  repository=out/model_repository
  if [ ! -e "$repository/random/model_index.json" ]; then
    say "model_repository/shapes is not here: making a model with random weights (draws noise)"
    deploy/setup.sh --tests
    "$cache/venv/bin/python" tools/random_model.py --preset tiny "$repository/random"
  fi
}

stop_server() {
  [ -n "$server_pid" ] || return 0
  kill -TERM "$server_pid" 2>/dev/null || true
  wait "$server_pid" || echo "demo: the server ended with status $?" >&2
  server_pid=""
}

start_server() {
  : >out/denoised.out
  build/bin/denoised --model_repository="$repository" --listen=127.0.0.1:0 \
    --admin_listen=127.0.0.1:0 --http_listen=127.0.0.1:0 --state_dir=out/state \
    >out/denoised.out 2>out/denoised.log &
  server_pid=$!
  trap stop_server EXIT
  local waited=0
  until grep -q '^READY ' out/denoised.out; do
    if ! kill -0 "$server_pid" 2>/dev/null || [ "$waited" -ge 1200 ]; then
      tail -n 20 out/denoised.log >&2
      echo "demo: the server did not become ready" >&2
      exit 1
    fi
    sleep 0.1
    waited=$((waited + 1))
  done
  grep '^READY ' out/denoised.out
  grpc="$(sed -n 's/^READY .*grpc=\([^ ]*\).*/\1/p' out/denoised.out)"
  http="$(sed -n 's/^READY .*http=\([^ ]*\).*/\1/p' out/denoised.out)"
}

# Counters of things that did not happen are there too, as 0: they are not shown.
read_metrics() {
  curl --fail --silent --show-error --noproxy '*' "http://$http/metrics" >out/demo.metrics
  grep -E '^denoised_(jobs_total|forward_batch_size_(count|sum)|forward_seconds_(count|sum)|attention_calls_total|stage_seconds_sum)' \
    out/demo.metrics | grep -v ' 0$'
}

main() {
  parse_arguments "$@"
  if [ "$skip_build" = no ]; then
    make --no-print-directory build
  fi
  mkdir -p out
  choose_repository

  say "starting the server on $repository"
  start_server

  say "denoisectl generate \"$prompt\" -o out/demo.mp4"
  build/bin/denoisectl generate "$prompt" --seed=7 --server="$grpc" -o out/demo.mp4

  say "the same as a job that outlives its client: submit, watch, fetch"
  local job
  job="$(build/bin/denoisectl submit "$prompt" --seed=7 --formats=gif,png --server="$grpc")"
  build/bin/denoisectl watch "$job" --server="$grpc" >out/demo.watch
  build/bin/denoisectl fetch "$job" --server="$grpc" -o out/demo.gif
  build/bin/denoisectl fetch "$job" --server="$grpc" -o out/demo.png

  say "what the server measured (all of it: out/demo.metrics)"
  read_metrics

  say "stopping the server"
  stop_server

  say "wrote"
  ls -l out/demo.mp4 out/demo.gif out/demo.png | awk '{ print $NF, $5, "bytes" }'
}

main "$@"
