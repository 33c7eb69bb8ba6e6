# SPDX-License-Identifier: Apache-2.0
"""The precision in which a run trains: what the configuration says, or what `auto` becomes on its devices.

It is bfloat16 where a device multiplies matrices of it, float16 (with loss scaling) where it multiplies only
that faster than float32, and float32 on every other device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from aiperf_mpi.config import Config
from aiperf_mpi.config.datasets import AUTO

#: Key of the inventory of a result: why its activations have this precision.
PRECISION = "precision"

#: The precision of devices that are not in the table.
EVERYWHERE = "float32"


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision of activations, and why it is chosen."""

    precision: str
    why: str


#: Devices as JAX tells them, PLATFORM or PLATFORM CAPABILITY (regular expressions of the whole text), with
#: their precision and its source. NVIDIA's capabilities are numbers, AMD's are names of instruction sets.
DEVICES: tuple[tuple[str, Choice], ...] = (
    (
        r"(gpu|cuda) ([89]|[1-9]\d)\.\d+",
        Choice(
            "bfloat16",
            "tensor cores multiply bfloat16 from compute capability 8.0 (NVIDIA, CUDA programming guide)",
        ),
    ),
    (
        r"(gpu|cuda) 7\.\d+",
        Choice(
            "float16",
            "tensor cores of compute capability 7 multiply float16 alone (NVIDIA, CUDA programming guide)",
        ),
    ),
    (
        r"(gpu|rocm) gfx(908|90a|94\d|950)",
        Choice("bfloat16", "matrix cores multiply bfloat16 (AMD, CDNA instruction set architectures)"),
    ),
    (
        r"(gpu|rocm) gfx1[12]\w+",
        Choice("bfloat16", "matrix instructions multiply bfloat16 (AMD, RDNA 3 and 4 instruction sets)"),
    ),
    # Intel's plugins for JAX call their platform xpu or sycl, and tell no capability.
    (
        r"(xpu|sycl).*",
        Choice("bfloat16", "matrix engines (XMX) multiply bfloat16 (Intel, oneAPI GPU optimization guide)"),
    ),
    (r"tpu.*", Choice("bfloat16", "matrix units multiply bfloat16 (Google Cloud, TPU documentation)")),
    (r"cpu.*", Choice(EVERYWHERE, "XLA widens operands of 16 bits on CPUs to float32")),
)

#: Names that drivers give to devices (regular expressions of the whole name), and what JAX tells of these.
NAMES: tuple[tuple[str, str], ...] = (
    (r"(NVIDIA )?(Tesla )?(V100|T4|TITAN V|TITAN RTX|Quadro RTX \d000|(GeForce )?RTX 20\d0)\b.*", "gpu 7.0"),
    (
        r"(NVIDIA )?(A(2|10G?|16|30|40|100|800)|L(4|20|40S?)|H(20|100|200|800)|GH200|G?B[23]00"
        r"|RTX A\d+|RTX PRO \d+|RTX \d+ Ada|(GeForce )?RTX [345]0\d0)\b.*",
        "gpu 8.0",
    ),
    (r"(AMD )?(Instinct )?MI(100|2\d\dX?|3\d\d[AX]?)\b.*", "gpu gfx90a"),
    (r"Intel(\(R\))? Data Center GPU (Max|Flex)\b.*", "xpu"),
    (r"(Google )?TPU\b.*", "tpu"),
    (r"cpu", "cpu"),
)


def choose(platform: str, capability: str = "") -> Choice:
    """Return the precision of a device by what JAX tells: its platform, and its compute capability or "".

    A device that is not in the table trains in float32.
    """
    text = f"{platform} {capability}".strip().lower()
    known = next((choice for pattern, choice in DEVICES if re.fullmatch(pattern, text)), None)
    if known is None:
        why = f"{text or 'a device without a name'} is not in aiperf_mpi/planning/precision.py"
        return Choice(EVERYWHERE, why)
    return Choice(known.precision, f"{text}: {known.why}" if capability else known.why)


def choose_by_name(name: str) -> Choice | None:
    """Return the precision of a device by the name that its driver gives; None if it is not known."""
    told = next((told for pattern, told in NAMES if re.fullmatch(pattern, name.strip(), re.IGNORECASE)), None)
    return None if told is None else choose(*told.split())


def choose_for(config: Config, devices: Iterable[tuple[str, str]]) -> Choice:
    """Return the precision in which a run trains on devices: platform and compute capability (or "") of each.

    Devices of several precisions train in the one that all have.
    """
    if config.train.precision != AUTO:
        return Choice(config.train.precision, "set by train.precision")
    choices = {choose(*device) for device in devices}
    if len({choice.precision for choice in choices}) > 1:
        return Choice(EVERYWHERE, "auto: the devices of a trainer differ")
    first = min(choices, key=lambda choice: choice.why)
    return Choice(first.precision, f"auto: {first.why}")


def with_precision(config: Config, precision: str) -> Config:
    """Return the configuration with this precision in place of `auto`."""
    return replace(config, train=replace(config.train, precision=precision))


def precisions(config: Config, device: str = "") -> tuple[str, ...]:
    """Return the precisions in which a run may train on a `device` of this name, the smallest one first.

    There are two if the configuration leaves it to a device that is not named or not known.
    """
    if config.train.precision != AUTO:
        return (config.train.precision,)
    choice = choose_by_name("cpu" if config.parallel.host_devices else device)
    return ("bfloat16", EVERYWHERE) if choice is None else (choice.precision,)
