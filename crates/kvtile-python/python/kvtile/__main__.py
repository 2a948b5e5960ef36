"""The commands of the program kvtile: ``python -m kvtile``, and the script of that name.

The demonstration and the benchmark are commands of the Rust program alone.
"""

from __future__ import annotations

import signal
import sys

from kvtile import _kvtile


def main() -> int:
    """Does what the arguments say and returns the exit code."""
    # The program is not Python: Ctrl-C ends it at once, or does what the command does then.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _kvtile.run_program(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
