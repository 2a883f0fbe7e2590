#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/tpu_worker.sh installed TREE | install TREE | run [--flag=value ...] | logs | stop

What launch/tpu_vm.sh does on each worker of a TPU VM, in the copy of the repository there.

  installed  is the source tree with this hash installed? (exit status)
  install    make a virtual environment with the trainer and jax for TPU
  run        start the trainer, detached: it continues when the connection is lost
  logs       follow its output to the end; exit status: that of the trainer
  stop       ask it to save a checkpoint and leave, and wait for that
END
}

root=$(cd "$(dirname "$0")/.." && pwd)
state=$HOME/.cyclic-trainer # What must outlive the sources, which are replaced.
stop_seconds=300            # To save a checkpoint takes seconds.
mkdir -p "$state"
cd "$root"

# The run holds a lock for as long as it lives; a pid could have become that of another process.
running() {
    ! flock --nonblock "$state/lock" true
}

case "${1:-}" in
installed)
    [[ -f $state/installed && $(<"$state/installed") == "$2" ]]
    ;;
install)
    uv=$(command -v uv || true)
    if [[ -z $uv ]]; then
        # The images have an older Python than jax needs; uv brings one.
        PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
        uv=$HOME/.local/bin/uv
    fi
    "$uv" venv --quiet --allow-existing --python 3.13 "$state/venv"
    "$uv" pip install --quiet --python "$state/venv/bin/python" --editable "${root}[tpu,gcs]"
    echo "$2" >"$state/installed"
    echo "installed on $(hostname)"
    ;;
run)
    shift
    if running; then
        echo "a run is in progress already on $(hostname); launch/tpu_vm.sh logs follows it"
        exit 0
    fi
    rm -f "$state/pid" "$state/status"
    # shellcheck disable=SC2016 # expanded by the inner shell
    nohup setsid flock --nonblock "$state/lock" bash -c '
        state=$1; shift
        exec >"$state/log" 2>&1
        "$state/venv/bin/python" -m trainer "$@" & pid=$!
        echo $pid >"$state/pid"
        wait $pid || status=$?
        echo ${status:-0} >"$state/status"
        echo "the trainer left with status ${status:-0}"
    ' bash "$state" "$@" --platform=tpu </dev/null >/dev/null 2>&1 &
    for ((i = 0; i < 100; i++)); do
        [[ -s $state/pid ]] && echo "started on $(hostname)" && exit 0
        sleep 0.1
    done
    echo "the run on $(hostname) did not start" >&2
    exit 1
    ;;
logs)
    [[ -f $state/log ]] || {
        echo "nothing has been started here" >&2
        exit 1
    }
    tail --lines=+1 --follow "$state/log" &
    follower=$!
    trap 'kill $follower' EXIT
    while running; do sleep 1; done
    sleep 1 # For tail to see the last line.
    exit "$(cat "$state/status" || echo 2)"
    ;;
stop)
    if running; then
        kill -TERM "$(<"$state/pid")"
        flock --timeout "$stop_seconds" "$state/lock" true || {
            echo "the run on $(hostname) did not leave within $stop_seconds s" >&2
            exit 1
        }
        tail --lines=2 "$state/log"
    else
        echo "nothing runs on $(hostname)"
    fi
    ;;
-h | --help)
    usage
    ;;
*)
    usage >&2
    exit 1
    ;;
esac
