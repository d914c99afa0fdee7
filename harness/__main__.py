"""`python -m harness`, and the command `harness`."""

from __future__ import annotations

import sys


def main() -> int:
    """The entry point: returns the exit status. Imports take the first moments, in which Ctrl-C is no error either."""
    try:
        from harness.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
