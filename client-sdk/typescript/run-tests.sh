#!/bin/sh
# Builds the TypeScript client and runs its tests. MNEMED names the daemon's program; tests that need it are skipped without it.
set -eu
cd "$(dirname "$0")"
if ! command -v npm >/dev/null 2>&1; then
    echo "skipped: no npm"
    exit 77
fi
if [ ! -d node_modules ] && ! npm install --silent --no-audit --no-fund --no-package-lock; then
    echo "skipped: npm cannot install typescript"
    exit 77
fi
npm test
# As the README installs it: `prepare` builds it, and another program's folder has it by its name.
rm -rf dist
npm run --silent prepare
program=$(mktemp -d)
trap 'rm -rf "$program"' EXIT
printf '{"private": true, "type": "module"}' >"$program/package.json"
npm install --silent --no-audit --no-fund --no-package-lock --prefix "$program" "$(pwd)"
(cd "$program" && node --input-type=module -e 'import { Client } from "mneme"; await new Client().close();')
