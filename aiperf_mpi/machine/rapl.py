# SPDX-License-Identifier: Apache-2.0
"""Energy counters of processors (RAPL), as the kernel shows them below /sys/class/powercap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Where the kernel shows them; AMD's processors are there by the same name.
POWERCAP = Path("/sys/class/powercap")

#: Joules of one count.
MICROJOULE = 1e-6


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter: a processor package, or the memory beside it; it begins anew at `span` counts of 1 µJ."""

    name: str
    path: Path
    span: int

    def read(self) -> int:
        """The counter; raises OSError or ValueError where it cannot be read."""
        return int((self.path / "energy_uj").read_text())


def zones(folder: Path = POWERCAP) -> tuple[tuple[Zone, ...], str]:
    """The packages and their memories that `folder` shows, and why there are none ("" where there are).

    All of them can be read, or none is used: a part of a host's power would pass for the whole. A package
    counts its cores and graphics, but not its memory; `psys` counts packages again and is left out, and so
    are the second views (mmio) of the same packages.
    """
    found: list[Zone] = []
    for path in sorted(folder.glob("intel-rapl:*")):
        depth = path.name.count(":")
        try:
            name = (path / "name").read_text().strip()
            if not ((depth == 1 and name.startswith("package")) or (depth == 2 and name == "dram")):
                continue
            zone = Zone(name, path, int((path / "max_energy_range_uj").read_text()))
            zone.read()
        except PermissionError:
            return (), f"RAPL: {path}/energy_uj may not be read by this user"
        except (OSError, ValueError) as error:
            return (), f"RAPL: {path} cannot be read: {error}"
        found.append(zone)
    return tuple(found), "" if found else f"RAPL: {folder} shows no processor package"
