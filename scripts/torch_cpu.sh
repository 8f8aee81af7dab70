#!/usr/bin/env bash
# Install the CPU build of torch that constraints/cpu.txt pins: scripts/torch_cpu.sh PYTHON
# The configured package indexes are asked first. They usually hold only the CUDA build (several GB), so where the
# CPU build is not found PyTorch's own index for it is asked, as PyTorch's installation page says.
set -euo pipefail

TORCH_CPU_INDEX="${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}"

python="$1"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
wanted="$(grep -E '^torch==' "$root/constraints/cpu.txt")"
install=("$python" -m pip install -qq --disable-pip-version-check --no-deps --no-compile)

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
if "${install[@]}" "$wanted" >"$log" 2>&1; then
    exit 0
fi
if ! grep -q -e 'No matching distribution' -e 'Could not find a version' "$log"; then
    cat "$log" >&2
    exit 1
fi
echo "        $wanted is not in the configured indexes; asking $TORCH_CPU_INDEX" >&2
"${install[@]}" --index-url "$TORCH_CPU_INDEX" "$wanted"
