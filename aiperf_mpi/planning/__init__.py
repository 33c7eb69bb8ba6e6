# SPDX-License-Identifier: Apache-2.0
"""Estimate the time, memory and storage of a run, and check whether they fit."""
