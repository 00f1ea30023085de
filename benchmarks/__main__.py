"""`python -m benchmarks`; processes that the benchmark starts do not load it again."""

import sys

from benchmarks.bench import main

if __name__ == "__main__":
    sys.exit(main())
