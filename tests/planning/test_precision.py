# SPDX-License-Identifier: Apache-2.0
"""What `train.precision = "auto"` becomes on a kind of device, as JAX or a driver names it."""

from __future__ import annotations

import pytest

from aiperf_mpi.config import from_toml, load
from aiperf_mpi.planning.precision import choose, choose_by_name, choose_for, precisions, with_precision


@pytest.mark.parametrize(
    ("platform", "capability", "precision"),
    [
        ("cpu", "", "float32"),
        ("tpu", "", "bfloat16"),
        ("gpu", "9.0", "bfloat16"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "8.9", "bfloat16"),
        ("gpu", "10.0", "bfloat16"),
        ("gpu", "12.1", "bfloat16"),
        ("gpu", "7.0", "float16"),
        ("gpu", "7.5", "float16"),
        ("gpu", "6.0", "float32"),
        ("gpu", "gfx90a", "bfloat16"),
        ("gpu", "gfx942", "bfloat16"),
        ("gpu", "gfx950", "bfloat16"),
        ("gpu", "gfx1100", "bfloat16"),
        ("gpu", "gfx906", "float32"),
        ("gpu", "gfx1030", "float32"),
        ("gpu", "", "float32"),
        ("xpu", "", "bfloat16"),
        ("sycl", "", "bfloat16"),
        ("npu", "", "float32"),
        ("", "", "float32"),
    ],
)
def test_the_precision_of_a_device_as_jax_tells_it(platform: str, capability: str, precision: str) -> None:
    choice = choose(platform, capability)
    assert choice.precision == precision and len(choice.why) > 20
    assert choice.why.isprintable() and capability in choice.why


def test_auto_is_the_precision_that_all_devices_of_a_trainer_have() -> None:
    config = load("imagenet")
    assert config.train.precision == "auto"
    assert choose_for(config, [("gpu", "9.0")] * 4).precision == "bfloat16"
    assert choose_for(config, [("gpu", "9.0"), ("gpu", "8.0")]).precision == "bfloat16"
    assert choose_for(config, [("gpu", "9.0"), ("gpu", "7.0")]).precision == "float32"
    assert choose_for(config, [("gpu", "9.0")]).why.startswith("auto: gpu 9.0: tensor cores")

    # A precision that a person sets stays, whatever the device.
    for name in ("float32", "bfloat16", "float16"):
        set_by_hand = load("imagenet", sets=[f"train.precision={name}"])
        assert choose_for(set_by_hand, [("cpu", "")]).precision == name
        assert precisions(set_by_hand, "cpu") == (name,)


def test_a_resolved_configuration_says_nothing_of_auto() -> None:
    config = with_precision(load("cifar10"), "float32")
    assert 'precision = "float32"' in config.to_toml() and from_toml(config.to_toml()) == config
    assert config.sha256 == load("cifar10", sets=["train.precision=float32"]).sha256


def test_the_precision_of_a_device_by_its_drivers_name() -> None:
    names = [
        "Tesla V100-SXM2-16GB",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H100 NVL",
        "NVIDIA H200",
        "NVIDIA L40S",
        "NVIDIA B200",
        "NVIDIA GB200",
        "AMD Instinct MI210",
        "AMD Instinct MI250X",
        "AMD Instinct MI300X OAM",
        "AMD Instinct MI300A",
        "Intel(R) Data Center GPU Max 1550",
        "Intel(R) Data Center GPU Max 1100",
    ]
    for name in names:
        choice = choose_by_name(name)
        assert choice is not None
        assert choice.precision == ("float16" if "V100" in name else "bfloat16"), name
    assert choose_by_name("Tesla T4") == choose("gpu", "7.0")
    assert choose_by_name("NVIDIA GeForce RTX 4090") == choose("gpu", "8.0")
    assert choose_by_name("TPU v5e") == choose("tpu")
    assert choose_by_name("cpu") == choose("cpu")
    assert choose_by_name("Tesla P100-PCIE-16GB") is choose_by_name("") is None
