"""Other people's test vectors: see tests/corpora."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tests.support.paths import CORPORA


def naughty_strings() -> list[str]:
    """The Big List of Naughty Strings."""
    strings: list[str] = json.loads((CORPORA / "blns" / "blns.json").read_text("utf-8"))
    return strings


def json_test_suite() -> dict[str, bytes]:
    """JSONTestSuite by file name: `y_` is JSON, `n_` is not, and readers differ over the others."""
    with tarfile.open(CORPORA / "jsontestsuite" / "corpus.tar.gz") as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None:
                found[Path(member.name).stem] = file.read()
    return found
