#!/bin/sh
# Drives the page of `mneme ui` in headless Chromium, and `mneme mcp` by the official TypeScript client and the Inspector's command
# line. MNEMED, MNEME and MNEME_ENGINE_FAKE name the programs. Packages lie in the user's cache folder, so that a fresh clone has
# them too. With MNEME_APT=1, root and apt-get, a missing Chromium is installed; without it the browser suite is skipped.
set -eu
cd "$(dirname "$0")"
if ! command -v npm >/dev/null 2>&1; then
    echo "skipped: no npm"
    exit 77
fi
if [ -z "${MNEMED:-}" ] || [ -z "${MNEME:-}" ]; then
    echo "skipped: MNEMED and MNEME name no programs"
    exit 77
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mneme/node-tests
if ! cmp -s package.json "$cache/installed.json"; then
    mkdir -p "$cache"
    cp package.json "$cache/package.json"
    if ! (cd "$cache" && npm install --silent --no-audit --no-fund --no-package-lock); then
        echo "skipped: npm cannot install the test packages"
        exit 77
    fi
    cp package.json "$cache/installed.json"
fi
[ -d node_modules ] && [ ! -L node_modules ] && rm -rf node_modules
ln -sfn "$cache/node_modules" node_modules
if ! command -v chromium >/dev/null 2>&1 && [ "${MNEME_APT:-}" = 1 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium) >/dev/null 2>&1 ||
        echo "chromium cannot be installed"
fi
exec node --test --test-reporter=spec "${@:-.}"
