"""The command-line program kvtile: ``python -m kvtile``, and the script of that name.

Only the Rust program has the demonstration and the benchmark.
"""

from __future__ import annotations

import signal
import sys

from kvtile import _kvtile


def main() -> int:
    """Runs the program with the process's arguments and returns the exit code."""
    # Python's own handler cannot interrupt Rust code; with the default action, Ctrl-C ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _kvtile.run_program(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
