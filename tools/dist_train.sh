#!/usr/bin/env bash
# Train on several GPUs of this machine:  tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT on each.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
if [ "${NNODES:-1}" -eq 1 ]; then
    rendezvous=(--standalone)
else
    rendezvous=(--nnodes "$NNODES" --node-rank "$NODE_RANK"
                --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" --nproc-per-node "$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
