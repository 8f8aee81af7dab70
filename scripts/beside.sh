#!/usr/bin/env bash
# Put the packages of constraints/NAME.txt into .venv-NAME, a folder for PYTHONPATH: what tests need beside .venv and what
# cannot be installed into it. `legacy`: transformers 4, with which our exports are opened. `s3`: moto's S3 server, which
# wants an older python-dateutil than is pinned. Does nothing where it is there; without a package index the tests skip.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
name="$1"
pins="constraints/$name.txt"
folder="$PWD/.venv-$name"
stamp="$folder/.installed-$(sha256sum <"$pins" | cut -c1-16)"
if [[ -f "$stamp" ]]; then
    exit 0
fi
rm -rf "$folder"
if .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --target "$folder" -r "$pins"; then
    touch "$stamp"
else
    rm -rf "$folder"
    echo "note: $pins could not be installed, so the tests that need it will be skipped" >&2
fi
