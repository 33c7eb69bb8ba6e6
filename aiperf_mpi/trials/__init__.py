# SPDX-License-Identifier: Apache-2.0
"""The record of a trial, the history of all trials, and how long a trial may train."""
