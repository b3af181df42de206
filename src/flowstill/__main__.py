"""``python -m flowstill`` is the command line."""

import sys

from flowstill.cli import main

if __name__ == "__main__":
    sys.exit(main())
