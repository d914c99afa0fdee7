"""`python -m harness`, and the command `harness`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """The entry point: returns the exit status.

    Ctrl-C is no error during the imports that come first, so they stand inside the `try`. Nor is it at the end: SIGINT
    then ends the process without a word, where Python's own shutdown would complain of a KeyboardInterrupt.
    """
    try:
        from harness.cli import main as command
        from harness.console.streams import outlive_readers

        outlive_readers()
        return command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
