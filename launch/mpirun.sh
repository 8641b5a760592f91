#!/usr/bin/env bash
# sae-train in several processes with Open MPI, on this machine or on those of a hostfile. Build it with
# `cargo build --release -p sae-train --features mpi`, with `--features mpi,nccl` for --device cuda.
#
#   launch/mpirun.sh MODEL DATASET --layers 24 --save-dir sae ...           everything that sae-train takes
#
#   SAE_TRAIN=PATH    the binary, at the same path on all machines; default: the release build of this repository
#   PROCESSES=N       processes on each machine, default 2; with --device cuda its GPUs
#   HOSTFILE=FILE     machines, one a line; they must be reachable by ssh without a password and see --save-dir
#   THREADS=N         cores of each process; default: this machine's, shared out
#   RESTARTS=N        how often a run that lost a process is started again, default 0
#   GRACE=N           a stopped run has so many seconds to write a checkpoint, default 20; a signal reaches it as much later
#   MPIRUN_FLAGS=...  more flags of mpirun, such as '--mca btl_tcp_if_include eth0'
#
# --resume is added: the same command goes on from the last checkpoint, also with another number of processes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=${SAE_TRAIN:-$here/../target/release/sae-train}
processes=${PROCESSES:-2}
restarts=${RESTARTS:-0}
grace=${GRACE:-20}
# What nproc says by itself depends on OMP_NUM_THREADS.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
threads=${THREADS:-$((cores > processes ? cores / processes : 1))}
read -ra more <<<"${MPIRUN_FLAGS:-}"

if [[ $# -eq 0 ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
if ! command -v mpirun >/dev/null; then
    echo "there is no mpirun here: install Open MPI (Debian: openmpi-bin)" >&2
    exit 2
fi
if ! command -v "$binary" >/dev/null; then
    echo "$binary is missing: cargo build --release -p sae-train --features mpi, or set SAE_TRAIN" >&2
    exit 2
fi

export OMP_NUM_THREADS=$threads RAYON_NUM_THREADS=$threads
flags=(
    -x OMP_NUM_THREADS -x RAYON_NUM_THREADS
    # A machine that is cut off is noticed after 2 + 3 * 1 s.
    --mca oob_tcp_keepalive_time 2 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3
    --mca odls_base_sigkill_timeout "$grace"
)
for variable in HF_HOME HF_TOKEN HF_HUB_OFFLINE RUST_LOG LD_LIBRARY_PATH "${!NCCL_@}"; do
    if [[ -v $variable ]]; then flags+=(-x "$variable"); fi
done
if ((processes * threads <= cores)); then
    flags+=(--use-hwthread-cpus --map-by "ppr:$processes:node:PE=$threads" --bind-to hwthread)
else
    flags+=(--map-by "ppr:$processes:node" --oversubscribe --bind-to none)
fi
if [[ -n ${HOSTFILE:-} ]]; then flags+=(--hostfile "$HOSTFILE"); fi
# In a container one is root.
if ((EUID == 0)); then flags+=(--allow-run-as-root); fi

# A signal ends mpirun and is no reason to start again.
stopped=
job=
trap 'stopped=yes; [[ -z $job ]] || kill -TERM "$job" 2>/dev/null' TERM INT

for ((start = 0; ; start++)); do
    if [[ -n $stopped ]]; then exit 143; fi
    # Not as a part of the terminal's foreground: Ctrl-C is handed on once.
    setsid mpirun "${flags[@]}" "${more[@]}" "$binary" "$@" --resume &
    job=$!
    status=0
    wait "$job" || status=$?
    # A trapped signal ends the wait, not the job.
    while kill -0 "$job" 2>/dev/null; do
        status=0
        wait "$job" || status=$?
    done
    # 2 is a wrong command line; 130 and 143 are runs that were told to stop.
    case $status in
    0 | 2 | 130 | 143) exit "$status" ;;
    esac
    if [[ -n $stopped ]] || ((start >= restarts)); then exit "$status"; fi
    echo "the run ended with exit code $status: started again, $((start + 1)) of $restarts times" >&2
done
