# SPDX-License-Identifier: Apache-2.0
"""How the next candidate and its hyperparameters are chosen."""
