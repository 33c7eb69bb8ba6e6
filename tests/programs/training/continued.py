# SPDX-License-Identifier: Apache-2.0
"""Go on with a training of the tiny network from its file, and print its marks as one line of JSON.

Arguments: folder of the file, number of its epochs, and the settings of the steps and of the training as
JSON. The tests in test_epoch_state.py run this program.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.helpers.training.cases import compiled_tiny
from tests.helpers.training.trainings import continued, marks

if __name__ == "__main__":
    folder, epochs, steps, changes = sys.argv[1:]
    run = continued(compiled_tiny(**json.loads(steps)), Path(folder), int(epochs), **json.loads(changes))
    print(json.dumps(marks(run)))
