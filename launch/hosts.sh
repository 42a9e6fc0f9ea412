#!/usr/bin/env bash
# Several hosts over ssh: start a run, or continue it where its folder exists already. HOSTFILE: lines "host slots=8"; the checkout, the
# environment, data and run folder must lie at the same path on every host. Options of `rb launch` may follow: --restart 5, key=value.
# usage: launch/hosts.sh HOSTFILE RUN_FILE [options and settings]
set -euo pipefail
hostfile=$1 run_file=$2
shift 2
exec "${PYTHON:-python}" -m rb.cli launch --hostfile "$hostfile" --run "$run_file" "$@"
