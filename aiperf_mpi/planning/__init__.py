# SPDX-License-Identifier: Apache-2.0
"""What a run will take, and whether it fits: time, memory, storage."""
