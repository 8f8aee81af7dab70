#!/usr/bin/env bash
# Run one benchmark: benchmarks/run.sh NAME [ARGUMENT...] (or `make bench-NAME ARGS="..."`).
# Peers that cannot live in .venv are listed in benchmarks/NAME/requirements.txt; they go to .venv-bench/NAME, beside
# the same torch as ours, and the benchmark starts them with $PEER_PYTHON.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
name="${1:-}"
known="$(cd benchmarks && ls ./*.py ./*/__main__.py | sed -e 's|^\./||' -e 's|/__main__||' -e 's|\.py$||' | grep -vE "^(comparing|apart|__init__)\$|_sides\$" | tr '\n' ' ')"
if [[ -z "$name" || "$name" == comparing || "$name" == apart || "$name" == *_sides || ! ( -f "benchmarks/$name.py" || -f "benchmarks/$name/__main__.py" ) ]]; then
    echo "error: no benchmark ${name:-given}; there are: $known" >&2
    exit 2
fi

peers="benchmarks/$name/requirements.txt"
if [[ -f "$peers" ]]; then
    venv="$PWD/.venv-bench/$name"
    stamp="$venv/.installed-$(cat "$peers" constraints/cpu.txt | sha256sum | cut -c1-16)"
    if [[ ! -f "$stamp" ]]; then
        echo "installing the peers of $name into .venv-bench/$name" >&2
        .venv/bin/python -m venv --clear "$venv"
        scripts/torch_cpu.sh "$venv/bin/python"
        "$venv/bin/python" -m pip install -qq --disable-pip-version-check -r "$peers" \
            -c <(grep -E '^torch==' constraints/cpu.txt)
        touch "$stamp"
    fi
    export PEER_PYTHON="$venv/bin/python"
fi
exec .venv/bin/python -m "benchmarks.$name" "${@:2}"
