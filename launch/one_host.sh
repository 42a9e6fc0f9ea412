#!/usr/bin/env bash
# One host, all its GPUs (or RANKS processes): start a run, or continue it where its folder exists already.
# usage: launch/one_host.sh RUN_FILE RUN_DIR [section.key=value ...]     RUN_DIR: output_dir/name of the run file
set -euo pipefail
run_file=$1 run_dir=$2
shift 2
cd "$(dirname "$0")/.."
what=(--run "$run_file")
[[ -f $run_dir/config.yaml ]] && what=(--resume "$run_dir")
exec "${PYTHON:-python}" -m rb.cli train ${RANKS:+--ranks "$RANKS"} "${what[@]}" "$@"
