# SPDX-License-Identifier: Apache-2.0
"""The cells of hyperparameter optimisation: what may be chosen, kernel x batch, and how it is counted."""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.network.architecture import DEFAULT_KERNEL


@dataclass(frozen=True)
class Choice:
    """Hyperparameters of a candidate: a cell of the published sets."""

    kernel_size: int
    batch_per_device: int


@dataclass(frozen=True)
class Cells:
    """The published sets as a table: `kernels` down, `batches` across; a single row where no kernel can be
    chosen.

    Arguments:
        kernels, batches: ascending, without duplicates.
        tunes_kernel: whether the candidate has a `deeper` of its own that takes the kernel.
    """

    kernels: tuple[int, ...]
    batches: tuple[int, ...]
    tunes_kernel: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (len(self.kernels) if self.tunes_kernel else 1, len(self.batches))

    def choice(self, cell: int) -> Choice:
        """The hyperparameters of a cell, as Python's own integers; cells are counted row by row."""
        row, column = divmod(int(cell), len(self.batches))
        return Choice(
            int(self.kernels[row]) if self.tunes_kernel else DEFAULT_KERNEL, int(self.batches[column])
        )

    def cell(self, kernel: int, batch: int) -> int:
        """The cell of a kernel and a batch, -1 if they are not in the sets."""
        if batch not in self.batches or (self.tunes_kernel and kernel not in self.kernels):
            return -1
        return (
            self.kernels.index(kernel) * len(self.batches) if self.tunes_kernel else 0
        ) + self.batches.index(batch)
