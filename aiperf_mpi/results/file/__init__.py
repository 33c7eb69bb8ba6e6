# SPDX-License-Identifier: Apache-2.0
"""From the rows that ranks report to the content of result.h5, and back."""
