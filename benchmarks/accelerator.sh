#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All measurements on a machine with one accelerator, in calls of less than ten minutes each:
#
#   benchmarks/accelerator.sh speed  OUT [tiny]   ResNet-50's speed at two batch sizes, the ceilings, PyTorch's
#                                                 step, the profile, pmap and jit, fed and resident
#   benchmarks/accelerator.sh levers OUT [tiny]   compilation cold and warm, the levers, steps during a compilation,
#                                                 morphs
#   benchmarks/accelerator.sh run    OUT [tiny]   five candidates under mpirun, and the gaps between them
#   benchmarks/accelerator.sh flags  OUT [tiny]   flags of XLA, each in its own process
#   benchmarks/accelerator.sh all    OUT [tiny]   the four, one after the other
#
# It needs a Python with JAX for the accelerator, flax, optax, h5py, scipy and psutil, and installs nothing; `speed`
# compares with PyTorch if that Python has it; `run` needs mpi4py, mpiexec on the PATH, its libmpi (which MPI4PY_LIBMPI
# names where it is in no usual place) and scikit-optimize. OUT/environment.txt lists what is missing. `tiny` does
# the same with the smallest shapes, to see that all of it works, also on a CPU.
#
# At 4,500 images/s the five candidates of `run` take 400 s, and their 18 GB of made-up images some 110 s before that.
# If a call may last only ten minutes, start it by `AIPERF_MPI_SECONDS=900 setsid benchmarks/accelerator.sh run OUT
# >/dev/null 2>&1 &` with an OUT that outlasts the call, and fetch OUT by a later one.
#
#   AIPERF_MPI_PYTHON=...  the Python (default: python3)
#   AIPERF_MPI_CACHE=...   folder of the compilation cache, kept between calls (default: .cache/benchmarks)
#   AIPERF_MPI_SECONDS=... most seconds of one call (default: 570)
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 2
call=${1:-} out=${2:-} shape=${3:-}
case $call in speed | levers | run | flags | all) ;; *) sed -n '3,28s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;; esac
[ -n "$out" ] && [ -z "${shape#tiny}" ] || { echo "usage: accelerator.sh speed|levers|run|flags|all OUT [tiny]" >&2; exit 2; }
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
python=${AIPERF_MPI_PYTHON:-python3} seconds=${AIPERF_MPI_SECONDS:-570}
export PYTHONUNBUFFERED=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
options=(--preset gpu)
if [ "$shape" = tiny ]; then
  options=(--preset cpu --blocks 1 1 --width 4 --batches 8 16 --steps 2 --repeats 3)
fi

# Print the machine's hardware and software; an error in this function does not end the script.
environment() {
  date -u
  uname -srm
  nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem,power.limit --format=csv 2>&1 || true
  "$python" --version
  "$python" - <<'END' || true
import importlib.util
for group, names in {
    "every call": ("jax", "flax", "optax", "numpy", "scipy", "h5py", "psutil", "sklearn"),
    "the peer": ("torch",),
    "run": ("mpi4py", "skopt", "rich", "threadpoolctl"),
}.items():
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    print(f"{group}: " + (f"MISSING {', '.join(missing)}" if missing else "all there"))
END
  "$python" -m pip list 2>/dev/null | grep -iE '^(jax|flax|optax|numpy|torch|triton|nvidia|mpi|scikit|h5py)' || true
}

# Make one table. Arguments: its name, its title, its parts, and more options of the command line.
table() {
  local name=$1 title=$2 parts=$3
  shift 3
  echo "accelerator: $name ($parts)" >&2
  "$python" benchmarks/training.py "${options[@]}" --only "$parts" --name "$name" --title "$title" --out "$out" \
    --seconds $((seconds - SECONDS_USED - 10)) --cache "${AIPERF_MPI_CACHE:-$root/.cache/benchmarks}" "$@" \
    >>"$out/$call.log" 2>&1
  local status=$?
  echo "accelerator: $name ended with $status after $SECONDS s" >&2
  return "$status"
}

# Keep the trace, one small file, and remove the folder that the profiler made.
trace() {
  local found
  found=$(find "$out/speed_trace" -name '*.xplane.pb' 2>/dev/null | head -1)
  [ -z "$found" ] || gzip -c "$found" >"$out/profile.xplane.pb.gz"
  rm -rf "$out/speed_trace"
}

environment >"$out/environment.txt" 2>&1
status=0
for part in $([ "$call" = all ] && echo speed levers run flags || echo "$call"); do
  SECONDS_USED=$([ "$call" = all ] && echo 0 || echo "$SECONDS")
  case $part in
    speed) table speed "The training step: speed" throughput,peer,profile,mapped,fed --limit 300 || status=$?; trace ;;
    levers) table levers "The training step: levers" compilation,levers,beside,morphs --limit 200 || status=$? ;;
    flags) table flags "The training step: flags of XLA" flags --limit 120 || status=$? ;;
    run) table run "Candidates one after the other" run --run-seconds $((seconds - 20)) || status=$? ;;
  esac
done
for page in speed levers run flags; do
  [ ! -f "$out/$page.md" ] || cat "$out/$page.md"
done
exit $status
