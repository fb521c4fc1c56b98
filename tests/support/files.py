"""Files that are changed as a user, or who means harm, would."""

import json
from pathlib import Path
from typing import Any


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; ``a__b`` is the entry b of the entry a."""
    data = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(data))
