#!/bin/sh
# Builds the wheel of mneme-native and installs it: build.sh [PROFILE] [PYTHON], by default of the dev profile into the environment of
# the tests. PYTHON is the interpreter of the environment that gets the wheel; maturin comes from the environment of the tests.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/mneme/python-native-tests
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
cd "$here"
"$venv/bin/maturin" build --quiet --profile "${1:-dev}" --locked --interpreter "$venv/bin/python" --out "$wheels"
"${2:-$venv/bin/python}" -m pip install --quiet --no-deps --no-index --force-reinstall "$wheels"/mneme_native-*-abi3-*.whl
