#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/gpu_host.sh [--dry_run] [--max_restarts=N] [--venv=DIR] [--] [COMMAND] [--flag=value ...]

A run on a host with NVIDIA GPUs: one process drives all of them. The driver is checked; what is
missing is installed from this repository into a virtual environment; then the trainer runs.

  launch/gpu_host.sh --flagfile=configs/gpu_8.cfg --workdir=runs/gpu

  --dry_run         print the commands, run none
  --max_restarts=N  start again from the last checkpoint after a failure, up to N times (default 0)
  --venv=DIR        the virtual environment to use or make (default: the active one, or .venv)

All other arguments go to the trainer. To use some of the GPUs: CUDA_VISIBLE_DEVICES=0,1.
Exit status: that of the trainer; 1 if something above is missing.
END
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# Run a command, or only print it.
run() {
    if [[ $dry_run == yes ]]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}

dry_run=no
max_restarts=0
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VIRTUAL_ENV:-$root/.venv}
while (($#)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --dry_run) dry_run=yes ;;
    --max_restarts=*) max_restarts=${1#*=} ;;
    --venv=*) venv=${1#*=} ;;
    --) shift && break ;;
    *) break ;;
    esac
    shift
done
[[ $max_restarts =~ ^[0-9]+$ ]] || fail "--max_restarts=$max_restarts; use 0 or more"
python=$venv/bin/python

if [[ $dry_run == yes ]]; then
    echo "nvidia-smi -L"
else
    command -v nvidia-smi >/dev/null ||
        fail "no nvidia-smi here: install the NVIDIA driver, or use launch/local.py on a CPU"
    nvidia-smi -L || fail "nvidia-smi finds no GPU: is the driver loaded? (dmesg | grep -i nvidia)"
fi

[[ -x $python ]] || run "${PYTHON:-python3}" -m venv "$venv" ||
    fail "no virtual environment in $venv; Debian and Ubuntu: apt-get install python3-venv"
# Is the trainer there, and does jax find the GPUs? Else this installs what is missing.
look='import trainer.cli, jax; jax.devices("gpu")'
if [[ $dry_run == yes ]]; then
    run "$python" -c "$look"
    echo "# if that fails:"
    run "$python" -m pip install --editable "${root}[cuda]"
elif ! "$python" -c "$look" 2>/dev/null; then
    "$python" -m pip install --editable "${root}[cuda]" || fail "pip could not install the trainer"
fi

if ((max_restarts)); then
    trainer=("$root/launch/local.py" -n 1 --max_restarts="$max_restarts" -- "$@" --platform=gpu)
else
    trainer=(-m trainer "$@" --platform=gpu)
fi
if [[ $dry_run == yes ]]; then
    run "$python" "${trainer[@]}"
else
    exec "$python" "${trainer[@]}"
fi
