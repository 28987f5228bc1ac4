#!/usr/bin/env bash
# Sets up .venv and runs the main job on embedded data: a synthetic slide of which 30 % of the cells are
# marked, losses of a U-Net and of a detector, a report each. Arguments go to `sparseshot demo`. Quick when run
# again.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
environment .venv "${PYTHON:-python3}" .
exec .venv/bin/sparseshot demo "$@"
