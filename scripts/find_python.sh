#!/usr/bin/env bash
# Print the Python that environments are made with: $PYTHON, else the first of python3.11, python3.12, python3 that
# runs and is 3.11 or 3.12. Shims of version managers may exist for versions that are not there, hence "runs".
set -euo pipefail

fits='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'

if [[ -n "${PYTHON:-}" ]]; then
    if "$PYTHON" -c "$fits" >/dev/null 2>&1; then
        command -v "$PYTHON"
        exit 0
    fi
    echo "error: PYTHON=$PYTHON is not a Python 3.11 or 3.12 with venv; name one that is" >&2
    exit 2
fi
for name in python3.11 python3.12 python3 python; do
    if "$name" -c "$fits" >/dev/null 2>&1; then
        command -v "$name"
        exit 0
    fi
done
for path in "$HOME"/.pyenv/versions/3.11.*/bin/python "$HOME"/.pyenv/versions/3.12.*/bin/python; do
    if "$path" -c "$fits" >/dev/null 2>&1; then
        echo "$path"
        exit 0
    fi
done
echo "error: no Python 3.11 or 3.12 with venv found; install one (on Debian: python3.11-venv) or set PYTHON=/path" >&2
exit 2
