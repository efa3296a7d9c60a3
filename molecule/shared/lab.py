#!/usr/bin/env python3
"""The lab: real Debian hosts on one machine, see molecule/README.md."""

import sys

# Said here because the modules below do not even compile on an older one.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(f"lab: needs Python 3.11 or newer, this is {sys.version.split()[0]}")

# As root in a user's folder: nothing is left there that the user cannot remove.
sys.dont_write_bytecode = True

from nspawn.cli import main  # noqa: E402 - after the line above

if __name__ == "__main__":
    sys.exit(main())
