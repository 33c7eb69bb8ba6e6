# SPDX-License-Identifier: Apache-2.0
"""Environment variables of others, read by the rules of those who made them."""
