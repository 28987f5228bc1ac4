#!/bin/bash
# Train on Slurm nodes, one task a node; the job goes on from its last checkpoint after a preemption, at
# the time limit, and after the loss of a node.
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/launch_slurm.sh train configs/unet_tnbc.py --run /shared/run
#
# The run folder must be one that every node sees: a shared disk, gs:// or s3://. For one task a GPU give
# --ntasks-per-node=8 as well. The addresses of the processes come from Slurm. The job takes whole nodes
# (--exclusive), for the cores of a node read and cut the tiles; --cpus-per-task=N goes on to the tasks.
# SPARSESHOT_SETUP: a command that makes `sparseshot` known on a node, such as "source /shared/venv/bin/activate".
# SPARSESHOT_RESTARTS: how often a job may be started again (20).

#SBATCH --job-name=sparseshot
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=sparseshot-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120

set -u

if [ "$#" -eq 0 ]; then
    echo "error: give a verb of sparseshot and its arguments, such as: train CONFIG --run FOLDER" >&2
    exit 2
fi

if [ -n "${SPARSESHOT_SETUP:-}" ]; then
    eval "$SPARSESHOT_SETUP" || exit 2
fi

# Slurm may send SIGTERM to this shell too (scancel --full, preemption): the tasks get their own, and their
# status says how they ended. srun runs in the background because a shell answers signals only between commands.
trap ':' TERM
# srun takes no --cpus-per-task from its job since Slurm 22.05.
srun --label --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \
    sparseshot "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    status=$?
done

# 143: stopped by SIGTERM, the state saved. 75, 134, 137: a process was lost. All else is for a person to see.
case "$status" in
    143 | 75 | 134 | 137)
        if [ "${SLURM_RESTART_COUNT:-0}" -lt "${SPARSESHOT_RESTARTS:-20}" ]; then
            echo "status $status: the job is queued again and goes on from its last checkpoint"
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
esac
exit "$status"
