# SPDX-License-Identifier: Apache-2.0
"""Write the commit of the source into the package when it is built. The metadata is in setup.cfg.

An installed package has no checkout that could tell its commit. An editable installation has one, and so
gets no stamp.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from aiperf_mpi.machine.source import STAMP, source  # noqa: E402


def write_stamp(folder: Path) -> None:
    """Write the commit, its state and the hash of the files into the package in `folder`."""
    file = folder / "aiperf_mpi" / STAMP
    # The file may be a hard link to that of the source.
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(source(ROOT / "aiperf_mpi"), indent=1) + "\n", encoding="utf-8")


class BuildPy(build_py):
    """Copy the modules, and stamp the copy."""

    def run(self) -> None:
        """Build as usual, then write the stamp, except for an editable installation."""
        super().run()
        if not self.editable_mode:
            write_stamp(Path(self.build_lib))


class Sdist(sdist):
    """Make a source archive whose package is stamped."""

    def make_release_tree(self, base_dir: str, files: Any) -> None:
        """Make the tree as usual, then write the stamp into it."""
        super().make_release_tree(base_dir, files)
        write_stamp(Path(base_dir))


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
