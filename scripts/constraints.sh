#!/usr/bin/env bash
# Renew constraints/cpu.txt and constraints/gpu.txt from the ranges in pyproject.toml. Only resolves, installs nothing
# but pip and packaging into a throw-away environment; called by `make constraints`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tmp="$(mktemp -d)"
trap 'rm -rf "$tmp"' EXIT
"$(scripts/find_python.sh)" -m venv "$tmp/venv"
"$tmp/venv/bin/python" -m pip install -qq --upgrade pip packaging
for extra in cpu gpu; do
    "$tmp/venv/bin/python" scripts/resolve.py "$extra" "$tmp/$extra.txt"
done
mv "$tmp/cpu.txt" "$tmp/gpu.txt" constraints/
echo "now run: make check test"
