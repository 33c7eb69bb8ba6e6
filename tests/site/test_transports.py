# SPDX-License-Identifier: Apache-2.0
"""Variables of network libraries that name what this host does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiperf_mpi.site.transports import judge


@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("UCX_NET_DEVICES=mlx5_0:1", "no device mlx5_0,"),
        ("UCX_NET_DEVICES=all", ""),
        ("UCX_NET_DEVICES=eth0,mlx5_0:1", ""),
        ("UCX_TLS=rc", "no InfiniBand"),
        ("UCX_TLS=rc,sm,self", "no InfiniBand"),
        ("UCX_TLS=tcp,self", ""),
        ("FI_PROVIDER=verbs", "no InfiniBand"),
        ("FI_PROVIDER=tcp", ""),
        ("OMPI_MCA_btl=^openib", ""),
        ("OMPI_MCA_btl_tcp_if_include=ib0", "no device ib0,"),
        ("OMPI_MCA_btl_tcp_if_include=10.1.0.0/16", ""),
        ("HOME=/x", ""),
    ],
)
def test_what_this_host_lacks(variable: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "sys/class/net/eth0").mkdir(parents=True)
    name, _, value = variable.partition("=")
    found = judge({name: value}, tmp_path)
    assert [told in one.text for one in found] == [True] * bool(told)
    # A host with the device has nothing to say.
    for device in ("infiniband/mlx5_0", "net/ib0"):
        (tmp_path / "sys/class" / device).mkdir(parents=True)
    assert judge({name: value}, tmp_path) == ()
