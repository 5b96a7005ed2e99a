#!/usr/bin/env bash
# Makes .venv in the checkout from the pinned requirements of this machine's target (cpu or gpu).
# Does nothing when the environment is already what the pins say.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${EAG_RL_TARGET:-}
if [ -z "$target" ]; then
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then target=gpu; else target=cpu; fi
fi
pins="requirements/$target.txt"
[ -f "$pins" ] || { echo "EAG_RL_TARGET must be cpu or gpu, got '$target'" >&2; exit 2; }

# The stamp names the pins and the place: a copied or moved checkout is installed anew.
stamp="$target $(cat "$pins" pyproject.toml requirements/install.sh | sha256sum | cut -c1-16) $(pwd)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/.eag-rl 2>/dev/null)" = "$stamp" ]; then exit 0; fi

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
[ -n "$python" ] || { echo "Python 3.11 is needed and was not found; install it or set PYTHON=/path/to/python3.11" >&2; exit 2; }

echo "Installing the $target environment into .venv (once; about a minute on a fast connection) ..."
exec 9>.venv.lock
flock 9 # two makes at once: the second finds the work done
if [ "$(cat .venv/.eag-rl 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -rf .venv
"$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"

# uv does not read pip's configuration: hand it the places pip would look for local wheels.
links=()
configured=${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
for place in $configured; do links+=(--find-links "$place"); done
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"

# The pins are complete, so nothing is resolved: --no-deps also keeps away what has no CPU build.
install() {
  .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps "${links[@]}" "$@" -r "$pins"
}
if [ "$target" = cpu ]; then
  # PyTorch's public CPU index only where the configured sources lack the CPU build.
  install 2>.venv/install.log ||
    install --index-strategy unsafe-best-match --extra-index-url https://download.pytorch.org/whl/cpu ||
    { cat .venv/install.log >&2; exit 1; }
else
  links=()
  install
fi
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo "$stamp" >.venv/.eag-rl
