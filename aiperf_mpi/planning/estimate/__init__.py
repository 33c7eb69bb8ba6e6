# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run on a machine that a person describes, before it is queued."""
