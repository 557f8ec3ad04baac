#!/bin/sh
# Runs mypy and pytest of the Python client in a virtual environment under the user's cache folder.
# MNEMED names the daemon's program; tests that need it are skipped without it. MNEME_PYTHON names another Python.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${MNEME_PYTHON:-python3}
if ! command -v "$python" >/dev/null 2>&1; then
    echo "skipped: no $python"
    exit 77
fi
venv=${XDG_CACHE_HOME:-$HOME/.cache}/mneme/python-tests
wanted="pytest>=8,<10 mypy>=1.8,<3 mcp>=2,<3 langgraph>=1,<2 langchain-core>=1,<2"
if [ ! -e "$venv/wanted" ] || [ "$(cat "$venv/wanted")" != "$wanted" ]; then
    rm -rf "$venv"
    # shellcheck disable=SC2086 # the list is meant to be split
    if ! "$python" -m venv "$venv" >/dev/null 2>&1 || ! "$venv/bin/pip" install --quiet $wanted; then
        echo "skipped: pip cannot install $wanted"
        exit 77
    fi
    printf '%s' "$wanted" >"$venv/wanted"
fi
cd "$here"
export PYTHONDONTWRITEBYTECODE=1
"$venv/bin/mypy" --cache-dir "$venv/mypy-cache"
exec "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
