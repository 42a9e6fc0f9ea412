#!/usr/bin/env bash
# Several hosts over ssh (pdsh), by DeepSpeed's own launcher. HOSTFILE: lines "host slots=8"; the checkout, the environment, data and
# run folder must lie at the same path on every host.
# usage: launch/hosts.sh HOSTFILE RUN_FILE RUN_DIR [section.key=value ...]
set -euo pipefail
hostfile=$1 run_file=$2 run_dir=$3
shift 3
# DeepSpeed trains on this host alone when the file is missing, after one line in its log.
[[ -s $hostfile ]] || { echo "error: host file $hostfile is missing or empty" >&2; exit 2; }
# With a host file DeepSpeed counts slots from GPU 0 on, whatever this variable says.
[[ -z ${CUDA_VISIBLE_DEVICES:-} ]] || { echo "error: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES is not used on several hosts; unset it" >&2; exit 2; }
command -v pdsh >/dev/null || { echo "error: pdsh not found; install it, or use launch/slurm.sbatch" >&2; exit 2; }
# A blank line or comment in this file makes DeepSpeed's launcher crash.
for file in ~/.deepspeed_env .deepspeed_env; do
  if [[ -f $file ]] && grep -qvE '^[A-Za-z_][A-Za-z0-9_]*=' "$file"; then
    echo "error: $file: every line must be NAME=value" >&2
    exit 2
  fi
done
hostfile=$(realpath "$hostfile")
cd "$(dirname "$0")/.."
what=(--run "$run_file")
[[ -f $run_dir/config.yaml ]] && what=(--resume "$run_dir")
exec deepspeed --hostfile "$hostfile" --master_port "${MASTER_PORT:-29500}" --module rb.train "${what[@]}" "$@"
