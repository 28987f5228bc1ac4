# Sourced by quickstart.sh and test.sh: `environment FOLDER PYTHON PACKAGE [CONSTRAINTS]` makes FOLDER a virtual
# environment with this checkout in it (PACKAGE is "." or ".[test]"), and does nothing where it is up to date.

environment() {
  local folder=$1 python=$2 package=$3 constraints=${4:-scripts/constraints.txt} stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; $python is $("$python" --version). Set PYTHON to another." >&2
    exit 1
  }
  stamp="$folder/.installed-$package-$(cat pyproject.toml scripts/constraints.txt | cksum | cut -d' ' -f1)"
  [ -e "$stamp" ] && return
  echo "installing into $folder (a few minutes the first time)"
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$constraints" --editable "$package"
  touch "$stamp"
}
