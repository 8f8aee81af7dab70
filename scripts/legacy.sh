#!/usr/bin/env bash
# Put the transformers 4 of constraints/legacy.txt into .venv-legacy, a folder for PYTHONPATH: the parity tests open our
# exports with it, on the torch of .venv. Does nothing where it is there; without a package index the tests skip.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
pins="constraints/legacy.txt"
folder="$PWD/.venv-legacy"
stamp="$folder/.installed-$(sha256sum <"$pins" | cut -c1-16)"
if [[ -f "$stamp" ]]; then
    exit 0
fi
rm -rf "$folder"
if .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --target "$folder" -r "$pins"; then
    touch "$stamp"
else
    rm -rf "$folder"
    echo "note: transformers 4 could not be installed, so the tests that need it will be skipped" >&2
fi
