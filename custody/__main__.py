"""Begins the command line.

Worker processes import again what began their parent. They shall not pay for a command line that they never use.
"""

import gc
import sys

_COLLECT_AFTER = 50_000
"""Objects after which garbage is collected. Modules create many, and no garbage: Python's 700 cost a command 50 ms."""


def main() -> None:
    """Run `custody` with the arguments of this process; ends it with the command's exit code."""
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    try:
        from custody.cli.main import main as run_command
    except KeyboardInterrupt:
        # As later: the command line ends an interrupted command with this code, and without a word.
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    main()
