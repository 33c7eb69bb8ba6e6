# SPDX-License-Identifier: Apache-2.0
"""The forms in which a site has pictures, one module each, and what they have in common."""
