#!/bin/sh
# Builds the wheel of mneme-native, installs it into a virtual environment under the user's cache folder, and runs mypy and pytest.
# MNEME_PYTHON names another Python, MNEME_GGUF a model whose vocabulary is tried, MNEME_NATIVE_PROFILE a cargo profile.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${MNEME_PYTHON:-python3}
if ! command -v "$python" >/dev/null 2>&1; then
    echo "skipped: no $python"
    exit 77
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "skipped: $python is older than 3.10"
    exit 77
fi
venv=${XDG_CACHE_HOME:-$HOME/.cache}/mneme/python-native-tests
wanted="maturin>=1.9,<2 numpy>=1.26,<3 pyarrow>=16 pytest>=8,<10 mypy>=1.8,<3"
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
sh "$here/build.sh" "${MNEME_NATIVE_PROFILE:-dev}"
export PYTHONDONTWRITEBYTECODE=1
model=$here/../.assets/models/smollm2-135m-instruct/smollm2.gguf
if [ -z "${MNEME_GGUF:-}" ] && [ -f "$model" ]; then
    export MNEME_GGUF="$model"
fi
"$venv/bin/mypy" --cache-dir "$venv/mypy-cache"
"$venv/bin/python" -m pytest -p no:cacheprovider "$@"
