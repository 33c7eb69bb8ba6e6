# SPDX-License-Identifier: Apache-2.0
"""Compile the project's steps for an accelerator that is described, not present.

XLA needs the description of a chip and the vendor's compiler (the extra `traffic`), but no device and no
driver. Which algorithms and tilings autotuning would choose on a device is unknown, so are all times.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.steps.compile import lower_evaluate, lower_train, options_of
from aiperf_mpi.training.steps.step import StepSettings

# JAX registers no GPU, not even a described one, if it asks a driver that is not there for its version.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


@dataclass(frozen=True, slots=True)
class Target:
    """A described GPU of NVIDIA.

    Attributes:
        name: as its driver gives it.
        capability: major number of its compute capability.
        cores, units: its multiprocessors, and the float32 units of each.
        shared: bytes of shared memory of a multiprocessor.
        cache, memory: bytes of the second cache, and of the device's memory.
        bandwidth: announced bytes per second of the memory.
        clock: GHz.
    """

    name: str
    capability: int
    cores: int
    units: int
    shared: int
    cache: int
    memory: int
    bandwidth: float
    clock: float

    @property
    def reached(self) -> float:
        """Bytes per second that copies of large arrays reach: REACHED of the announced ones."""
        return REACHED * self.bandwidth

    @property
    def description(self) -> str:
        """The description in XLA's form (a text of the protocol buffer GpuTargetConfigProto)."""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
              shared_memory_per_block_optin: {self.shared - 1024}
              core_count: {self.cores} fpus_per_core: {self.units} clock_rate_ghz: {self.clock}
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth:.0f} l2_cache_size: {self.cache}
              device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {self.capability} }}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 8 }}
            runtime_version {{ major: 13 minor: 0 patch: 0 }}
            device_description_str: "{self.name}"
        """


#: Share of the announced bandwidth that copies reach on H100 and H200 (3.0 of 3.35, 4.3 of 4.8 TB/s).
REACHED = 0.9

#: The accelerators, with the numbers of the vendor's data sheets (as in the specifications that XLA has).
TARGETS: Mapping[str, Target] = {
    "a100": Target("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 41943040, 85100068864, 2.03904e12, 1.41),
    "h100": Target("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 52428800, 84942979072, 3.35232e12, 1.98),
    "h200": Target("NVIDIA H200", 9, 132, 128, 233472, 52428800, 151397597184, 4.8e12, 1.98),
    "b200": Target("NVIDIA B200", 10, 148, 128, 233472, 132644864, 191514411008, 7.67232e12, 1.965),
}


@dataclass(frozen=True)
class Compilation:
    """A compiled program and what XLA says of it.

    Attributes:
        text: the program.
        trace_seconds, compile_seconds: processor seconds of tracing with lowering, and of XLA; None if a kept
            program does not say.
        temporary, arguments: bytes on a device.
        xla_bytes: bytes by XLA's own estimate, in which library calls count nothing.
    """

    text: str
    trace_seconds: float | None
    compile_seconds: float | None
    temporary: int
    arguments: int
    xla_bytes: float


def has_compiler() -> bool:
    """Return whether JAX's plugin for GPUs of NVIDIA is installed (the extra `traffic`)."""
    return any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


def described_devices(target: Target, count: int) -> list[jax.Device]:
    """Return `count` described devices. Raises an error of JAX if its plugin for them is not installed."""
    description = topologies.get_topology_desc(
        platform="cuda", target_config=target.description, topology=f"1x1x{count}"
    )
    return list(description.devices)


def compile_for(
    target: Target,
    architecture: Architecture,
    settings: StepSettings,
    *,
    devices: int = 1,
    form: str = "shard_map",
    evaluate: bool = False,
    programs: Path | None = None,
) -> Compilation:
    """Compile a step for described devices.

    Arguments:
        form: how it is dispatched, see `dispatch`.
        evaluate: the evaluation step instead of the training step.
        programs: folder that keeps compiled programs. A step that lowers to the same text is not compiled
            again.
    """
    begin = time.process_time()
    lower = lower_evaluate if evaluate else lower_train
    lowered = lower(architecture, settings, described_devices(target, devices), form)
    source = lowered.as_text()
    traced = time.process_time() - begin

    options = options_of(settings)
    parts = (jax.__version__, target.description, source, *([repr(options)] if options else []))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    if programs is not None and (programs / f"{key}.json").exists():
        facts = json.loads((programs / f"{key}.json").read_text())
        return Compilation((programs / f"{key}.hlo").read_text(), **facts)
    begin = time.process_time()
    compiled = lowered.compile(options)
    made = _described(compiled, traced, time.process_time() - begin)
    if programs is not None:
        _keep(made, programs, key)
    return made


def _described(compiled: Any, traced: float, seconds: float) -> Compilation:
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return Compilation(
        text,
        round(traced, 1),
        round(seconds, 1),
        memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        xla_bytes(compiled.runtime_executable().hlo_modules()[0]),
    )


def xla_bytes(module: Any) -> float:
    """Return the bytes that XLA's analysis counts for a module, with the rules of its CPU client.

    A described device has no client to ask. The analysis is that of all backends but for library calls,
    which it does not know.
    """
    from jax._src.lib import _jax

    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)["bytes accessed"]


def _keep(made: Compilation, programs: Path, key: str) -> None:
    programs.mkdir(parents=True, exist_ok=True)
    facts = asdict(made)
    (programs / f"{key}.hlo").write_text(facts.pop("text"))
    (programs / f"{key}.json").write_text(json.dumps(facts))
