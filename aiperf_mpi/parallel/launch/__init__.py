# SPDX-License-Identifier: Apache-2.0
"""From the launcher to the split into ranks, and the two ways out of a job."""
