"""`python -m pdutils`: see `pdutils.cli.main`."""

import signal
import sys

from pdutils.cli.main import main

if __name__ == "__main__":
    # A kill ends as Ctrl-C does: kernels are ended, and temporary files removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
