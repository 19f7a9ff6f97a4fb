"""The work folder of an evaluation: finished results as files, so that an interrupted run continues where it stopped.

Knows nothing of what the results are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class ResultCache:
    """A folder of finished results, one JSON file each. A file is complete or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get_or_compute(self, name: str, inputs: Any, compute: Callable[[], Any]) -> Any:
        """Return the stored result if it was computed from the same inputs; else compute and store it.

        inputs: anything that JSON can hold.
        """
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{name}.json"
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored.get("inputs") == digest:
                return stored["result"]
        result = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"inputs": digest, "result": result}, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)
        # Through JSON too, so that the first run sees the same types as one that reads the file.
        return json.loads(json.dumps(result))
