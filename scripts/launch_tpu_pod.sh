#!/bin/bash
# Run one sparseshot command on every host of a Cloud TPU slice. The hosts find each other by themselves.
#
#   scripts/launch_tpu_pod.sh my-v5e-64 us-west4-a train configs/unet_tnbc.py --run gs://bucket/run
#   scripts/launch_tpu_pod.sh my-v5e-64 us-west4-a --install
#
# The run folder must be on gs://: the hosts share no disk. --install puts the package on every host first
# (SPARSESHOT_PACKAGE: what pip installs there, "sparseshot-jax[tpu,gcs]"). SPARSESHOT_TRIES: how often the
# command is given again after a host was lost or preempted (5); it goes on from its last checkpoint.

set -u

if [ "$#" -lt 3 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
name=$1
zone=$2
shift 2

on_every_host() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

if [ "$1" = "--install" ]; then
    package=${SPARSESHOT_PACKAGE:-"sparseshot-jax[tpu,gcs]"}
    on_every_host "python3 -m venv ~/sparseshot && ~/sparseshot/bin/pip install -q $(printf '%q' "$package")"
    exit
fi

command="exec ~/sparseshot/bin/sparseshot$(printf ' %q' "$@")"
tries=${SPARSESHOT_TRIES:-5}
for ((try = 1; try <= tries; try++)); do
    on_every_host "$command"
    status=$?
    # gcloud gives the status of a host that failed: 2 is a mistake in the command, 130 Ctrl-C.
    case "$status" in
        0 | 2 | 130) exit "$status" ;;
    esac
    if [ "$try" -lt "$tries" ]; then
        echo "status $status: try $((try + 1)) of $tries goes on from the last checkpoint" >&2
        sleep 30
    fi
done
exit "$status"
