# SPDX-License-Identifier: Apache-2.0
"""The training of one candidate: epochs, validations, checkpoints; model/ is the network, steps/ the compiled
steps."""
