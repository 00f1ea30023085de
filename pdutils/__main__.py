"""`python -m pdutils`: see `pdutils.cli.main`."""

import signal
import sys
from typing import Any, NoReturn

from pdutils.cli.main import main


def _terminated(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    # A kill ends as Ctrl-C does: kernels are ended, and temporary files removed.
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
