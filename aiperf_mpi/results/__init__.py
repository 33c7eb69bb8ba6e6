# SPDX-License-Identifier: Apache-2.0
"""Results: rows and file (schema, run, journal, tables, resultfile), the writer process and its client, the judge with
its checks and the evidence they recompute, and how a verdict is said (report, text)."""
