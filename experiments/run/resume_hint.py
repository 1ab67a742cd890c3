"""Prints how to resume a run if the process of the run dies.

Command: python resume_hint.py HINT

The process of the run starts it with a pipe as standard input. If the pipe is closed before a byte
arrives, it prints HINT to standard error.
"""

import sys

if __name__ == "__main__" and not sys.stdin.read(1):
    print(sys.argv[1], file=sys.stderr)
