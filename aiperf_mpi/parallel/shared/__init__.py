# SPDX-License-Identifier: Apache-2.0
"""What ranks share: windows, the history, the candidate queue, messages, the clock."""
