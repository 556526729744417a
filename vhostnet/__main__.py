"""``python -m vhostnet``, and the commands ``vhostnet`` and ``vhostnet-helper``."""

import sys


def main() -> int:
    """The entry point of ``vhostnet``."""
    if sys.argv[1:2] == ["helper"]:
        return _helper(sys.argv[2:], "vhostnet helper")
    from vhostnet.commands.cli import main as run

    return run()


def helper() -> int:
    """The entry point of ``vhostnet-helper``, for who has room for a path and no word after it (libvirt)."""
    return _helper(sys.argv[1:], "vhostnet-helper")


def _helper(arguments: list[str], prog: str) -> int:
    from vhostnet.commands.helper import main as run

    return run(arguments, prog)


if __name__ == "__main__":
    sys.exit(main())
