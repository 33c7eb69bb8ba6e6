# SPDX-License-Identifier: Apache-2.0
"""Networks between hosts: a host's own addresses, which of them a run may use, and who reaches whom."""
