# SPDX-License-Identifier: Apache-2.0
"""From what ranks report to a result file, its verdict and its reports."""
