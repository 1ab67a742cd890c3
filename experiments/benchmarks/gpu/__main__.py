"""The command: python -m experiments.benchmarks.gpu."""

import sys

from experiments.benchmarks.gpu.command import main

if __name__ == "__main__":
    sys.exit(main())
