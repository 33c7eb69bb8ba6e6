# SPDX-License-Identifier: Apache-2.0
"""Changes that may make a step faster, in the order in which they are worth trying.

Memory limits a step of ResNet-50. So the changes that reduce bytes come first (batch norms, precision), then
those that fill the device (batch sizes), the stem, the other forms, the channels, and last the flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiperf_mpi.opcount.forms import LEAN


@dataclass(frozen=True)
class Lever:
    """One change against the default step.

    Attributes:
        settings: fields of `StepSettings` that differ.
        network: fields of `Shape` that make another network.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)


#: Flags of XLA that may change a step, by the kind of device that knows them.
FLAGS = {
    "gpu": (
        "--xla_gpu_experimental_enable_conv_fusion=true",
        "--xla_gpu_experimental_enable_fusion_autotuner=true",
        "--xla_gpu_enable_triton_gemm=false",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_autotune_level=0",
        "--xla_gpu_enable_latency_hiding_scheduler=true",
    ),
    "cpu": (
        "--xla_cpu_enable_fast_math=true",
        "--xla_cpu_multi_thread_eigen=false",
        "--xla_gpu_enable_triton_gemm=false",
    ),
}


def levers(batches: tuple[int, ...], precision: str, width: int) -> list[Lever]:
    """Return all levers except the flags, in order.

    Arguments:
        batches: the default step takes the first, the others are levers.
        precision: of the default step; the other ones are levers.
        width: of the default network.
    """
    others = [other for other in ("float32", "bfloat16", "float16") if other != precision]
    return [
        Lever("batch norms apart, differentiated by JAX", {"fused": False}),
        Lever("batch norms of all devices' images", {"synchronised": True}),
        *(Lever(f"activations in {other}", {"precision": other}) for other in others),
        *(Lever(f"batch {batch}", {"batch_per_device": batch}) for batch in batches[1:]),
        Lever("two micro-batches a step", {"accumulate": 2}),
        Lever("stem on blocks of 2x2 pixels", {"stem": "space_to_depth"}),
        *(Lever(f"forms: {', '.join(LEAN[:n])}", {"forms": LEAN[:n]}) for n in range(1, len(LEAN) + 1)),
        Lever(
            f"width {width - max(1, width // 16)}: channels no multiples of 64",
            network={"width": width - max(1, width // 16)},
        ),
        Lever("images not augmented", {"augmentation": "none"}),
    ]
