# SPDX-License-Identifier: Apache-2.0
"""Find the energy counters of processors (RAPL) that the kernel shows in /sys/class/powercap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Folder of the counters; those of AMD's processors have the same names.
POWERCAP = Path("/sys/class/powercap")

#: Joules of one count.
MICROJOULE = 1e-6


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter of a processor package or of its memory; it restarts at 0 after `span` counts of 1 µJ."""

    name: str
    path: Path
    span: int

    def read(self) -> int:
        """Read the counter. Raises OSError or ValueError if it cannot be read."""
        return int((self.path / "energy_uj").read_text())


def zones(folder: Path = POWERCAP) -> tuple[tuple[Zone, ...], str]:
    """Return the counters in `folder`, and the reason if there is none (else "").

    If one of them cannot be read, none is used: a part of a host's power would pass for the whole. A package
    counts its cores and graphics, but not its memory. `psys` and the second views (mmio) of packages are left
    out: they count the packages again.
    """
    counters: list[Zone] = []
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
        counters.append(zone)
    return tuple(counters), "" if counters else f"RAPL: {folder} shows no processor package"
