# SPDX-License-Identifier: Apache-2.0
"""The writer process and the output folder: journal, repair, package, submission."""
