#!/bin/sh
# Compiles the kernels with NVRTC from PyPI; no CUDA toolkit and no GPU is needed.
#
#   backends/cuda/kernels/build.sh           writes backends/cuda/kernels/built/
#   backends/cuda/kernels/build.sh --check   fails if what is committed there is not what the sources give
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${TERSOR_NVRTC_VENV:-${TMPDIR:-/tmp}/tersor-nvrtc-12.9.86}
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
if ! "$venv/bin/python" -c 'import nvidia.cuda_nvrtc' 2>/dev/null; then
    "$venv/bin/python" -m pip install -q --disable-pip-version-check nvidia-cuda-nvrtc-cu12==12.9.86
fi
exec "$venv/bin/python" "$here/build.py" "$@"
