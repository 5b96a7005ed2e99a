#!/usr/bin/env bash
# Rewrites the pinned requirements from the *.in files: versions only, no addresses. Needs uv.
set -euo pipefail
cd "$(dirname "$0")"
uv=${UV:-../.venv/bin/uv}
pin() { # pin TARGET ARGS...
  local name=$1
  shift
  "$uv" pip compile "$@" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-annotate --no-header --quiet --output-file "$name.pins" >/dev/null
  grep -vE '^(#|--|$)' "$name.pins" >"$name.txt"
  rm "$name.pins"
}
links=()
for place in ${PIP_FIND_LINKS:-}; do links+=(--find-links "$place"); done
cpu_index=()
[ ${#links[@]} -gt 0 ] || cpu_index=(--index-strategy unsafe-best-match --extra-index-url https://download.pytorch.org/whl/cpu)
pin cpu cpu.in dev.in --override overrides-cpu.txt "${links[@]}" "${cpu_index[@]}"
pin gpu gpu.in dev.in --override overrides-gpu.txt
pin core core.in --override <(echo 'torch==2.13.0+cpu') "${links[@]}" "${cpu_index[@]}"
sed -i 's/^torch==2.13.0+cpu$/torch==2.13.0/' core.txt # any build of torch will do for ehr/
