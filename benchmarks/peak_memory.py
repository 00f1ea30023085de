"""`python -m benchmarks.peak_memory COMMAND ...`: run it, print its peak resident memory.

A process that is started inherits the peak of the one that starts it, so the benchmark, which
holds networks, cannot measure its own children; this small program can.
"""

import resource
import subprocess
import sys

if __name__ == "__main__":
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
