"""What a benchmark's numbers were made with, for its JSON."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Return the short name of the commit that is checked out."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # there is no git
        return "unknown"
    return found.stdout.strip() or "unknown"
