"""Where things are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]  # the repository
CORPORA: Final = ROOT / "tests" / "corpora"  # other people's test vectors
