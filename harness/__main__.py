"""`python -m harness`, and the command `harness`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """The entry point: returns the exit status. Imports take the first moments, in which Ctrl-C is no error either.

    Nor is it in the last: what Python does when it ends would complain of a KeyboardInterrupt.
    """
    try:
        from harness.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
