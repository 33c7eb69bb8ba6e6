# SPDX-License-Identifier: Apache-2.0
"""The cells of hyperparameter optimisation: the table of permitted values, kernel x batch."""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.network.architecture import DEFAULT_KERNEL


@dataclass(frozen=True)
class Choice:
    """Hyperparameters of a candidate: one cell of the table."""

    kernel_size: int
    batch_per_device: int


@dataclass(frozen=True)
class Cells:
    """The permitted values as a table: `kernels` by row, `batches` by column.

    The table has one row if no kernel can be chosen.

    Arguments:
        kernels, batches: ascending, without duplicates.
        tunes_kernel: whether the candidate has an own `deeper` morph whose kernel size can be chosen.
    """

    kernels: tuple[int, ...]
    batches: tuple[int, ...]
    tunes_kernel: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return (len(self.kernels) if self.tunes_kernel else 1, len(self.batches))

    def choice(self, cell: int) -> Choice:
        """Return the hyperparameters of a cell as Python integers; cells are numbered row by row."""
        row, column = divmod(int(cell), len(self.batches))
        return Choice(
            int(self.kernels[row]) if self.tunes_kernel else DEFAULT_KERNEL, int(self.batches[column])
        )

    def cell(self, kernel: int, batch: int) -> int:
        """Return the cell of a kernel and a batch, -1 if they are not in the table."""
        if batch not in self.batches or (self.tunes_kernel and kernel not in self.kernels):
            return -1
        return (
            self.kernels.index(kernel) * len(self.batches) if self.tunes_kernel else 0
        ) + self.batches.index(batch)
