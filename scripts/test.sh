#!/usr/bin/env bash
# Sets up .venv and runs formatting, lint, types and tests; --all adds the slow tests. Other arguments go
# to pytest. Where Python 3.12 exists (or PYTHON312 names it) and CI is set, the core runs on it too.
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
  newer=${PYTHON312:-python3.12}
  if "$newer" -c '' 2>/dev/null; then
    environment .venv312 "$newer" ".[test]"
    .venv312/bin/python -m pytest -n 2 -m "not slow" \
      tests/losses tests/models tests/training tests/data/test_pipeline.py
  else
    echo "Python 3.12 is not here: its share of the tests is left out"
  fi
fi
