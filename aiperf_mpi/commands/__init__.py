# SPDX-License-Identifier: Apache-2.0
"""One file for each subcommand: its arguments and its handler."""
