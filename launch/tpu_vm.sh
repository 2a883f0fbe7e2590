#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'END'
usage: launch/tpu_vm.sh COMMAND [options] [-- --flag=value ...]

A run on a Cloud TPU VM or a slice of a pod, by way of gcloud. Commands:

  up       create the TPU VM; nothing if it exists; a preempted one is replaced
  install  copy this repository to all workers and install it; nothing if it has not changed
  run      start the trainer on all workers, detached; nothing if it runs already
  logs     follow the output of the first worker to the end (Ctrl-C ends only the following)
  stop     let the trainer save a checkpoint and leave; run resumes from there
  delete   delete the TPU VM and its disks: nothing is fetched, nothing costs money afterwards
  all      up, install, run, logs

  --name=NAME         of the TPU VM (or TPU_NAME)
  --zone=ZONE         such as us-west4-a (or TPU_ZONE)
  --project=PROJECT   (or TPU_PROJECT; default: that of gcloud)
  --type=TYPE         accelerator type (or TPU_TYPE; default v5litepod-8)
  --version=VERSION   software version (or TPU_VERSION; default: the one for jax on that type)
  --spot              cheaper, but Google may take it away at any time
  --queued            wait in Google's queue until there is one, which Google recommends; also for
                      the other commands of this VM. Ctrl-C ends only the waiting
  --flex_start=TIME   queued, for at most this long, such as 4h; from the preemptible quota
  --dry_run           print the gcloud commands, run none

What follows -- goes to the trainer. A type with more than 8 chips has several workers, which need
--workdir=gs://BUCKET/... to meet there. Give it to a spot VM, too: its disk is lost with it.

  launch/tpu_vm.sh all --name=mnist --zone=us-west4-a -- --flagfile=configs/tpu_v5e_8.cfg
  launch/tpu_vm.sh delete --name=mnist --zone=us-west4-a

Needs git, and gcloud (https://cloud.google.com/sdk) with `gcloud auth login` done. To reach several
workers gcloud wants its key in the agent of ssh: ssh-add ~/.ssh/google_compute_engine
Exit status: that of the trainer for logs and all; else 0, or 1 if a step failed.
END
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# Print words as a command that a shell can read again.
show() {
    local word
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
        printf '%s ' "$word"
    done
    echo
}

# End the script because a step failed: say which, how to continue, and what still costs money.
step_failed() {
    {
        echo "error: the step $1 failed"
        echo "to continue from there: $(show "${invocation[@]}")"
        say_costs
    } >&2
    exit 1
}

say_costs() {
    echo "the TPU VM costs money for as long as it exists; to delete it: $(show "${deletion[@]}")"
}

# Run gcloud, or only print the command.
tpu_vm() {
    local verb=$1
    shift
    local words=(gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}")
    if [[ $dry_run == yes ]]; then
        show "${words[@]}"
    else
        "${words[@]}"
    fi
}

# The same for the request in Google's queue, which has the name of its TPU VM.
queue() {
    local group=compute verb=$1
    shift
    # Flex-start is not in the released commands yet.
    [[ -z $flex_start ]] || group="alpha compute"
    # shellcheck disable=SC2206 # two words
    local words=(gcloud $group tpus queued-resources "$verb" "$name" "$@" "${where[@]}")
    if [[ $dry_run == yes ]]; then
        show "${words[@]}"
    else
        "${words[@]}"
    fi
}

# Run launch/tpu_worker.sh there: on_workers all|NUMBER ARGUMENT...
on_workers() {
    local worker=$1
    shift
    tpu_vm ssh "$name" --worker="$worker" \
        --command="bash cyclic-trainer/launch/tpu_worker.sh$(printf ' %q' "$@")"
}

# Print the state of the TPU VM, such as READY, or of a request, such as ACTIVE; or MISSING.
state_of() {
    if "$@" 2>"$scratch/errors"; then
        return
    elif grep --quiet NOT_FOUND "$scratch/errors"; then
        echo MISSING
    else
        cat "$scratch/errors" >&2
        return 1
    fi
}

state_of_vm() {
    state_of tpu_vm describe "$name" --format='value(state)'
}

state_of_request() {
    state_of queue describe --format='value(state.state)'
}

# Ask for the TPU VM, and wait until it is there.
up_queued() {
    local create=(create --node-id="$name" --accelerator-type="$type" --runtime-version="$version")
    [[ $spot == no ]] || create+=(--spot)
    if [[ -n $flex_start ]]; then
        create+=(--provisioning-model=flex-start --max-run-duration="$flex_start")
    fi
    if [[ $dry_run == yes ]]; then
        queue describe --format='value(state.state)'
        echo "# if there is none; then the first again until it prints ACTIVE:"
        queue "${create[@]}"
        return
    fi
    local state before=""
    while true; do
        state=$(state_of_request) || step_failed up
        [[ $state == "$before" ]] || echo "the request $name is in state $state"
        before=$state
        case $state in
        ACTIVE) return ;;
        MISSING) queue "${create[@]}" || step_failed up ;;
        FAILED | SUSPENDED)
            # The request of a VM that was taken away stays, and would never be served again.
            queue delete --force --quiet || step_failed up
            [[ $state == SUSPENDED ]] || step_failed up
            ;;
        *) sleep "${TPU_POLL_SECONDS:-30}" ;;
        esac
    done
}

up() {
    if [[ $queued == yes ]]; then
        up_queued
        return
    fi
    local create=(create "$name" --accelerator-type="$type" --version="$version")
    [[ $spot == no ]] || create+=(--spot)
    if [[ $dry_run == yes ]]; then
        tpu_vm describe "$name" --format='value(state)'
        echo "# if there is none:"
        tpu_vm "${create[@]}"
        return
    fi
    local state
    state=$(state_of_vm) || step_failed up
    case $state in
    READY)
        echo "$name exists"
        ;;
    MISSING)
        tpu_vm "${create[@]}" || step_failed up
        ;;
    PREEMPTED | TERMINATED)
        echo "$name was taken away ($state); making it anew"
        tpu_vm delete "$name" --quiet || step_failed up
        tpu_vm "${create[@]}" || step_failed up
        ;;
    STOPPED)
        tpu_vm start "$name" || step_failed up
        ;;
    *)
        echo "$name is in state $state: wait until it is READY, or delete it" >&2
        step_failed up
        ;;
    esac
}

install() {
    local commit tree unpack
    # The files under version control as they are now, changes included.
    commit=$(git -C "$root" -c user.name=- -c user.email=- stash create) || step_failed install
    commit=${commit:-HEAD}
    tree=$(git -C "$root" rev-parse "$commit^{tree}") || step_failed install
    if [[ $dry_run == yes ]]; then
        on_workers all installed "$tree"
        echo "# if not:"
    else
        echo "are these sources installed on all workers?"
        if on_workers all installed "$tree"; then
            echo "yes"
            return
        fi
        echo "not yet"
    fi
    git -C "$root" archive --format=tar.gz --output="$scratch/$archive" "$commit" ||
        step_failed install
    tpu_vm scp "$scratch/$archive" "$name:$archive" --worker=all || step_failed install
    # Not under a run that is in progress; and runs/, where a relative --workdir lies, stays.
    unpack="mkdir -p .cyclic-trainer cyclic-trainer && cd cyclic-trainer &&"
    unpack+=" { flock --nonblock ../.cyclic-trainer/lock true ||"
    unpack+=" { echo 'a run is in progress: stop it first' >&2; exit 1; }; } &&"
    unpack+=" find . -mindepth 1 -maxdepth 1 ! -name runs -exec rm -r {} + &&"
    unpack+=" tar -xzf ../$archive"
    tpu_vm ssh "$name" --worker=all --command="$unpack" || step_failed install
    on_workers all install "$tree" || step_failed install
}

run() {
    local workers
    if [[ $dry_run == yes ]]; then
        tpu_vm describe "$name" --format='value(networkEndpoints[].ipAddress)'
    else
        workers=$(tpu_vm describe "$name" --format='value(networkEndpoints[].ipAddress)') ||
            step_failed run
        # One address a worker, separated by semicolons.
        [[ $workers != *[\;,]* ]] || need_bucket "$name has several workers"
    fi
    on_workers all run "${flags[@]}" || step_failed run
}

logs() {
    local status=0
    on_workers 0 logs || status=$?
    if [[ $dry_run == no ]]; then
        echo "the run left with status $status, or the connection was lost (logs follows it again)"
        say_costs
    fi >&2
    return "$status"
}

stop() {
    on_workers all stop || step_failed stop
}

delete() {
    local state
    if [[ $queued == yes ]]; then
        [[ $dry_run == yes ]] || state=$(state_of_request) || step_failed delete
        if [[ ${state:-} == MISSING ]]; then
            echo "there is no request $name"
            return
        fi
        queue delete --force --quiet || step_failed delete # With its TPU VM.
        return
    fi
    if [[ $dry_run == no ]]; then
        state=$(state_of_vm) || step_failed delete
        if [[ $state == MISSING ]]; then
            echo "there is no $name"
            return
        fi
    fi
    tpu_vm delete "$name" --quiet || step_failed delete
}

# Several workers: checkpoints must lie where all find them.
need_bucket() {
    local flag
    for flag in "${flags[@]}"; do
        [[ $flag != --workdir=gs://* ]] || return 0
    done
    fail "$1, and so the run needs --workdir=gs://BUCKET/FOLDER after --"
}

root=$(cd "$(dirname "$0")/.." && pwd)
invocation=("$0" "$@")
step=${1:-}
case $step in
-h | --help) usage && exit 0 ;;
up | install | run | logs | stop | delete | all) shift ;;
*) fail "'$step'; use up, install, run, logs, stop, delete or all (--help explains)" ;;
esac
name=${TPU_NAME:-} zone=${TPU_ZONE:-} project=${TPU_PROJECT:-} type=${TPU_TYPE:-v5litepod-8}
version=${TPU_VERSION:-} spot=no queued=no flex_start="" dry_run=no
while (($#)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=yes ;;
    --queued) queued=yes ;;
    --flex_start=*) queued=yes flex_start=${1#*=} ;;
    --dry_run) dry_run=yes ;;
    --) shift && break ;;
    *) fail "$1 is no option of this script (--help explains); flags of the trainer follow --" ;;
    esac
    shift
done
flags=("$@")
[[ -n $name ]] || fail "which TPU VM? --name=NAME or TPU_NAME"
[[ -n $zone ]] || fail "in which zone? --zone=ZONE or TPU_ZONE"
if [[ $type == tpu7* || $type == v7* ]]; then
    # https://cloud.google.com/tpu/docs/tpu7x
    fail "--type=$type: Google's Cloud TPU API, which this script uses, does not serve TPU7x;" \
        "use Google Kubernetes Engine (launch/jobset.yaml), or a type such as v6e-8"
fi
[[ $flex_start =~ ^([0-9]+[smhd])?$ ]] || fail "--flex_start=$flex_start; use such as 4h or 2d"
[[ -z $flex_start || $spot == no ]] || fail "--spot and --flex_start exclude each other"
if [[ -z $version ]]; then
    # https://cloud.google.com/tpu/docs/runtimes
    case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
    esac
fi
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
deletion=("$0" delete --name="$name" "${where[@]}")
[[ $queued == no ]] || deletion+=(--queued)
archive=cyclic-trainer.tar.gz
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Before anything that costs money.
if [[ $step == run || $step == all ]]; then
    ((${type##*-} <= 8)) || need_bucket "--type=$type has several workers"
fi
[[ $dry_run == yes ]] || command -v gcloud >/dev/null ||
    fail "no gcloud here: install it (https://cloud.google.com/sdk), then gcloud auth login"

if [[ $step == all ]]; then
    up
    install
    run
    logs
else
    "$step"
fi
