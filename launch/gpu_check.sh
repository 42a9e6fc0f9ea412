#!/usr/bin/env bash
# Full size on one GPU: OPT-6.7B and FlanT5-XXL RegionBLIP with random weights, ZeRO-2 against plain torch, time, memory, attention kernels.
# Self-contained: needs Python with torch (CUDA), transformers and peft; no checkpoint, no data, no network. Meant for 9 minutes on an H200; see docs/results.md.
# usage: launch/gpu_check.sh [--wheels DIR] [options of python -m rb.gpu_check]
#   --wheels DIR: where deepspeed is not installed, a folder made on a machine with a network and the same Python, from the checkout, by
#     pip wheel --no-deps -c constraints.txt -w DIR deepspeed hjson msgpack py-cpuinfo einops pydantic pydantic-core annotated-types typing-inspection
#   It is used from a temporary folder; nothing is installed. Without it the ZeRO-2 half is left out, and the rest runs.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
extra=
if [[ ${1:-} == --wheels ]]; then
  [[ -n ${2:-} ]] || { echo "error: --wheels needs a folder" >&2; exit 2; }
  wheels=$(cd "$here" && realpath "$2")
  shift 2
  compgen -G "$wheels/*.whl" >/dev/null || { echo "error: no *.whl in $wheels" >&2; exit 2; }
  extra=$(mktemp -d)
  trap 'rm -rf "$extra"' EXIT
  "${PYTHON:-python}" -m pip install --quiet --no-index --no-deps --target "$extra" "$wheels"/*.whl
fi
PYTHONPATH=$PWD${extra:+:$extra}${PYTHONPATH:+:$PYTHONPATH} "${PYTHON:-python}" -m rb.gpu_check "$@"
