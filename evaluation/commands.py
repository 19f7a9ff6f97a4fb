"""The commands that `lethe` gains from this package. Imports nothing heavy: `lethe serve` reads this too."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Register every command of this package on the parser of `lethe`."""
