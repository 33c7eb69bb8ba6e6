# SPDX-License-Identifier: Apache-2.0
"""The configurations that ship with the program, in TOML."""
