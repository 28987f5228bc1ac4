#!/bin/bash
# Run one sparseshot command on every host of a Cloud TPU slice. The hosts find each other by themselves.
#
#   scripts/launch_tpu_pod.sh my-v5e-64 us-west4-a train configs/unet_tnbc.py --run gs://bucket/run
#   scripts/launch_tpu_pod.sh my-v5e-64 us-west4-a --install
#
# The run folder must be on gs://: the hosts share no disk. --install copies this clone, configs/ and all, to
# ~/sparseshot on every host and installs it there with uv under Python 3.12 (the image of a TPU VM has 3.10);
# give it again after a change. SPARSESHOT_EXTRAS: extras to install ("tpu,gcs"). Commands run in ~/sparseshot:
# paths count from there. Images must lie on a disk of every host, such as a bucket mounted with gcsfuse.
# SPARSESHOT_TRIES: how often the command is given again after a host was lost or preempted (5); it goes on
# from its last checkpoint.

set -u

if [ "$#" -lt 3 ]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
name=$1
zone=$2
shift 2

on_every_host() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

if [ "$1" = "--install" ]; then
    clone=$(cd "$(dirname "$0")/.." && pwd) || exit
    packed=$(mktemp -d) || exit
    trap 'rm -rf "$packed"' EXIT
    tar -czf "$packed/sparseshot.tgz" --exclude=./.git --exclude='./.venv*' --exclude=./runs \
        --exclude=__pycache__ -C "$clone" . || exit
    gcloud compute tpus tpu-vm scp "$packed/sparseshot.tgz" "$name:sparseshot.tgz" --zone="$zone" \
        --worker=all || exit
    extras=$(printf '%q' ".[${SPARSESHOT_EXTRAS:-tpu,gcs}]")
    on_every_host "mkdir -p ~/sparseshot && tar -xzf ~/sparseshot.tgz -C ~/sparseshot && cd ~/sparseshot &&
        export PATH=\$HOME/.local/bin:\$PATH &&
        { command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh; } &&
        { [ -d .venv ] || uv venv -q --python 3.12 .venv; } && uv pip install -q -e $extras"
    exit
fi

command="cd ~/sparseshot && exec .venv/bin/sparseshot$(printf ' %q' "$@")"
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
