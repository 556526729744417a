"""``python -m vhostnet``, and the ``vhostnet`` command."""

import sys


def main() -> int:
    """The command's entry point."""
    from vhostnet.commands.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
