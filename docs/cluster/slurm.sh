#!/bin/bash
# A study on SLURM: one task per GPU. The first one runs the launcher, the others are workers.
#
#   sbatch docs/cluster/slurm.sh photos.yaml photos       # study file, name of the study
#
# Submit it again, also while it runs: it continues the study, or more workers join.
#SBATCH --job-name=autotune
#SBATCH --ntasks=4
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=autotune-%j.log
set -u
export STUDY=${1:?a study file} NAME=${2:?the name of the study}

# AUTOTUNE_STORAGE=postgresql://user:password@host/autotune, readable by its owner alone.
secret=${AUTOTUNE_ENV:-$HOME/.config/autotune.env}
if [ "$(stat -Lc %a "$secret")" != 600 ]; then
    echo "$secret must be there, and for you alone: chmod 600 $secret" >&2
    exit 2
fi
set -a
. "$secret"
set +a

stopped=
stop() {
    stopped=1
    kill -TERM "$workers"
}
trap stop TERM

# A task that ends does not end the others.
srun --kill-on-bad-exit=0 --wait=0 bash -c '
    if [ "$SLURM_PROCID" = 0 ]; then
        exec autotune run "$STUDY" --name "$NAME" --workers 1
    fi
    exec autotune worker "$NAME" --wait 3600
' &
workers=$!
wait "$workers"
code=$?
if [ -n "$stopped" ]; then
    wait "$workers"    # the signal has ended the wait before it: now the trials are handed back
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
