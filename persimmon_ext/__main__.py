"""``python -m persimmon_ext``: the same as the command ``persimmon-ext``."""

import sys

from persimmon_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
