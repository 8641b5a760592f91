#!/usr/bin/env bash
# sae-train with PyTorch's launcher, a process and a GPU each, over NCCL. Needs `pip install torch` for torchrun only, and
# `cargo build --release -p sae-train --features nccl`.
#
#   launch/torchrun.sh MODEL DATASET --layers 24 --save-dir sae ...         everything that sae-train takes
#
#   SAE_TRAIN=PATH    the binary; default: the release build of this repository
#   PROCESSES=N       processes on this machine, default: its GPUs
#   NODES=N           machines, default 1; start this on each of them, with
#   RENDEZVOUS=HOST:PORT    a port on one of them, where torchrun's agents meet, and
#   RUN=NAME          a name that this job's machines share, default sae-train
#   RESTARTS=N        how often all processes are started again when one is lost, default 3
#   LMM_SAE_PORT=N    the port on which the processes meet, on the machine of rank 0; default 29401
#
# --resume is added: whenever it starts, it goes on from the last checkpoint, also with another number of processes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=${SAE_TRAIN:-$here/../target/release/sae-train}
nodes=${NODES:-1}

if [[ $# -eq 0 ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
for tool in torchrun "$binary"; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is missing: see the first lines of $0" >&2
        exit 2
    fi
done

processes=${PROCESSES:-$(nvidia-smi -L 2>/dev/null | wc -l)}
if ((processes == 0)); then
    echo "no GPU here that nvidia-smi knows: set PROCESSES" >&2
    exit 2
fi
# What nproc says by itself depends on OMP_NUM_THREADS.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
threads=$((cores > processes ? cores / processes : 1))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-$threads}

flags=(
    --no-python --nnodes "$nodes" --nproc-per-node "$processes" --max-restarts "${RESTARTS:-3}"
    --rdzv-backend c10d --rdzv-id "${RUN:-sae-train}"
)
if ((nodes > 1)); then
    : "${RENDEZVOUS:?set RENDEZVOUS=HOST:PORT, the same on all $nodes machines}"
    flags+=(--rdzv-endpoint "$RENDEZVOUS")
else
    flags+=(--rdzv-endpoint "${RENDEZVOUS:-localhost:0}")
fi

# The port after torchrun's, which sae-train takes by itself, may be another's.
export LMM_SAE_PORT=${LMM_SAE_PORT:-29401}
[[ " $* " == *" --device"* ]] || set -- "$@" --device cuda
exec torchrun "${flags[@]}" "$binary" "$@" --collective nccl --resume
