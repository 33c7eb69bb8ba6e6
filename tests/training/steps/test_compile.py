# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from aiperf_mpi.training.checkpoint import digest
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.steps.compile import convolution_precision
from tests.helpers.training.cases import TINY, compiled_tiny, random_batch, started


def test_a_step_consumes_its_state(tiny):
    state = started(tiny)
    after, _ = tiny.train(state, *random_batch(TINY, 1, 4), tiny.scalar(0.1))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert not any(x.is_deleted() for x in jax.tree.leaves(after))


def test_steps_never_write_into_arrays_of_the_host(tiny):
    def aligned(array: np.ndarray) -> np.ndarray:
        # XLA takes over a host array without a copy if it begins at a multiple of 64 bytes.
        memory = np.empty(array.nbytes + 64, np.uint8)
        begin = -memory.ctypes.data % 64
        copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    given = jax.tree.map(aligned, initial_variables(tiny.architecture, np.random.default_rng(0)))
    state = tiny.start(given, np.random.default_rng(0))
    state, _ = tiny.train(state, *random_batch(TINY, 1, 4), tiny.scalar(0.1))
    kept = tiny.variables(state)
    before = jax.tree.map(np.copy, kept)
    jax.block_until_ready(tiny.train(state, *random_batch(TINY, 1, 4), tiny.scalar(0.1)))

    fresh = initial_variables(tiny.architecture, np.random.default_rng(0))
    assert digest(given) == digest(fresh) != digest(kept) == digest(before)


def test_other_shapes_or_types_of_images_are_refused(tiny):
    images, labels = random_batch(TINY, 1, 5)
    with pytest.raises(TypeError):
        tiny.train(started(tiny), images, labels, tiny.scalar(0.1))
    with pytest.raises(TypeError):
        tiny.train(started(tiny), images[:, :4].astype(np.float32), labels[:, :4], tiny.scalar(0.1))


def test_the_learning_rate_never_recompiles(tiny):
    images, labels = random_batch(TINY, 1, 4)
    biases = []
    for rate in (0.0, 0.1, 0.2):
        state, _ = tiny.train(started(tiny), images, labels, tiny.scalar(rate))
        biases.append(tiny.variables(state)["params"]["dense"]["bias"])
    assert not biases[0].any()
    np.testing.assert_allclose(biases[2], 2 * biases[1], rtol=1e-6)


def test_times_of_tracing_and_compiling_are_separate():
    begin = time.perf_counter()
    compiled = compiled_tiny(label_smoothing=0.17)
    whole = time.perf_counter() - begin
    assert 0 < compiled.trace_seconds < whole
    assert 0 < compiled.compile_seconds < whole
    assert compiled.trace_seconds + compiled.compile_seconds == pytest.approx(whole, rel=0.2)


def test_steps_compile_in_a_thread_next_to_the_main_thread(tiny):
    made, turns = [], 0
    thread = threading.Thread(target=lambda: made.append(compiled_tiny(label_smoothing=0.05)))
    thread.start()
    while thread.is_alive():
        time.sleep(0.005)
        turns += 1
    assert turns > 10

    images, labels = random_batch(TINY, 1, 4)
    _, metrics = made[0].train(started(made[0]), images, labels, made[0].scalar(0.1))
    assert np.isfinite(metrics.loss)


def test_float32_runs_as_float32(tiny):
    assert tiny.precision == "float32"


def test_bfloat16_has_the_precision_that_the_device_uses():
    # A device without bfloat16 convolutions computes them in float32, and the program says so.
    compiled = compiled_tiny(precision="bfloat16")
    assert compiled.precision in ("bfloat16", "float32", "bfloat16,float32")
    text = compiled.train.as_text()
    assert ("bf16[" in text) or compiled.precision == "float32"


PROGRAM = """
%fused (param_0.1: bf16[8,32,32,4], param_1.1: {weights}[3,3,4,4]) -> bf16[8,32,32,4] {{
  %param_0.1 = bf16[8,32,32,4]{{3,2,1,0}} parameter(0)
  %param_1.1 = {weights}[3,3,4,4]{{3,2,1,0}} parameter(1)
  ROOT %convolution.3 = bf16[8,32,32,4]{{3,2,1,0}} convolution(%param_0.1, %param_1.1), window={{size=3x3 pad=1_1x1_1}}
}}
ENTRY %main {{
  %x = {call}[8,4,32,32]{{3,2,1,0}} parameter(0)
  %w = {call}[4,3,3,4]{{3,2,1,0}} parameter(1)
  %d = f32[8,128]{{1,0}} parameter(2)
  %cudnn-conv.2 = ({call}[8,4,32,32], u8[0]{{0}}) custom-call(%x, %w), custom_call_target="__cudnn$convForward"
  %gemm = (f32[8,10]{{1,0}}, u8[0]{{0}}) custom-call(%d, %d), custom_call_target="__cublas$gemm"
}}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("weights", "call", "expected"),
    [
        ("bf16", "bf16", "bfloat16"),
        ("bf16", "f32", "bfloat16,float32"),
        ("f32", "bf16", "bfloat16,float32"),
        ("f16", "f16", "bfloat16,float16"),
    ],
)
def test_precision_is_read_from_instructions_and_library_calls(weights, call, expected):
    assert convolution_precision(PROGRAM.format(weights=weights, call=call)) == expected


def test_a_program_without_a_convolution_has_no_known_precision():
    assert convolution_precision("ENTRY %main {\n  ROOT %x = f32[2]{0} parameter(0)\n}") == "unknown"


#: Compiles the tiny network's steps; prints the hits of the cache, and the CPU seconds of the compilations.
CACHED = """
import sys, time, jax
from aiperf_mpi.training.steps.compile import use_compilation_cache
from tests.helpers.training.cases import compiled_tiny
use_compilation_cache(sys.argv[1])
hits, spent, compile = [], [], jax.stages.Lowered.compile
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
def timed(*arguments, **options):
    begin = time.process_time()
    try:
        return compile(*arguments, **options)
    finally:
        spent.append(time.process_time() - begin)
jax.stages.Lowered.compile = timed
compiled_tiny()
print(sum("cache_hits" in event for event in hits), len(spent), sum(spent))
"""


def test_a_second_process_finds_the_programs_in_the_cache(tmp_path, root):
    # Compiled as in a run: the flags of the tests make it almost as fast as a look into the cache.
    env = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    hits, seconds = [], []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", CACHED, str(tmp_path / "cache")],
            cwd=root,
            capture_output=True,
            env={**env, "JAX_PLATFORMS": "cpu"},
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        hit, compilations, spent = run.stdout.split()
        hits.append(int(hit))
        seconds.append(float(spent))
        # Training, evaluation and average.
        assert int(compilations) >= 3
    assert hits == [0, 3]
    # Of a candidate that was compiled before, only tracing and lowering are left. These are CPU seconds:
    # other work on the machine changes elapsed ones.
    assert seconds[1] <= 0.2 * seconds[0], seconds


#: Keeps programs where no file can be written; then warns of something else.
NOT_KEPT = """
import resource, sys, warnings, jax, jax.numpy as jnp
from aiperf_mpi.training.steps.compile import release_compilation_cache, use_compilation_cache
use_compilation_cache(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
if sys.argv[2:]:
    release_compilation_cache()
for size in range(3, 6):
    jax.jit(lambda x: x * size + 1)(jnp.ones(size)).block_until_ready()
warnings.warn("of another kind")
"""


@pytest.mark.parametrize("closed", [False, True])
def test_programs_that_cannot_be_kept_are_told_once(closed, tmp_path, root):
    words = [sys.executable, "-c", NOT_KEPT, str(tmp_path / "cache"), *(["closed"] if closed else [])]
    env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    env["JAX_PLATFORMS"] = "cpu"
    run = subprocess.run(words, cwd=root, capture_output=True, env=env, text=True, timeout=120)
    told = [line for line in run.stderr.splitlines() if "compil" in line]
    assert run.returncode == 0 and "of another kind" in run.stderr
    assert len(told) == (0 if closed else 1), run.stderr
    assert closed or (told[0].startswith("aiperf_mpi: rank ") and "File too large" in told[0])
