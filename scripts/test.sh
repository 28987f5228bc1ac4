#!/usr/bin/env bash
# Sets up .venv and runs formatting, lint, types and tests; --all adds the slow tests. Other arguments go
# to pytest. Where CI is set, the Beam pipeline is tested too, and the core on Python 3.12 where that exists
# (or PYTHON312 names it).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

marked=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
  marked=()
  shift
fi

environment .venv "${PYTHON:-python3}" ".[test]"
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/basedpyright
.venv/bin/python -m pytest -n 2 "${marked[@]}" "$@"

if [ -n "${CI:-}" ]; then
  # apache-beam wants older releases of some packages: it has an environment of its own.
  older='^(beartype|grpcio|packaging|pillow|protobuf|pyarrow|python-dateutil)=='
  mkdir -p .venv_beam
  grep -vE "$older" scripts/constraints.txt >.venv_beam/constraints.txt
  environment .venv_beam "${PYTHON:-python3}" ".[test,beam]" .venv_beam/constraints.txt
  .venv_beam/bin/python -m pytest tests/data/shards/test_beam.py

  newer=${PYTHON312:-python3.12}
  if "$newer" -c '' 2>/dev/null; then
    environment .venv312 "$newer" ".[test]"
    .venv312/bin/python -m pytest -n 2 -m "not slow" \
      tests/losses tests/models tests/training tests/data/test_pipeline.py
  else
    echo "Python 3.12 is not here: its share of the tests is left out"
  fi
fi
