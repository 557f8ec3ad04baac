#!/usr/bin/env bash
# Prints the exposure that systemd-analyze computes for the service (0 best, 10 worst) and fails above the bound.
# The files are analysed as they are: nothing is installed and no service manager has to run.
set -euo pipefail
cd "$(dirname "$0")"
bound="1.0"
if ! command -v systemd-analyze >/dev/null; then
    echo "systemd-analyze is not installed: skipped"
    exit 0
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
sed 's|@MNEMED@|/usr/bin/env|; s|@STATE@|/var/lib/mneme|' mneme.service >"$folder/mneme.service"
cp mneme.socket "$folder/"
# In user mode it wants a runtime folder, wherever that is.
export XDG_RUNTIME_DIR="$folder"
report="$(systemd-analyze --user security --offline=true --no-pager "$folder/mneme.service")"
[ "${1:-}" = "--all" ] && echo "$report"
score="$(grep -o 'Overall exposure level[^:]*: [0-9.]*' <<<"$report" | grep -o '[0-9.]*$')"
echo "mneme.service: exposure $score, bound $bound"
awk -v score="$score" -v bound="$bound" 'BEGIN { exit !(score <= bound) }'
