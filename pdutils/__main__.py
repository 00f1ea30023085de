"""`python -m pdutils`: see `pdutils.commands`."""

import signal
import sys
from typing import Any, NoReturn

from pdutils.commands import main


def _terminated(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    # A kill ends as Ctrl-C does: kernels are ended, and temporary files removed.
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
