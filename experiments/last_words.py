"""Speaks for a process that ended without a chance to: started by it, waits at a pipe from it.

Command: python last_words.py WORDS, which go to the standard error if the standard input ends
without a byte.
"""

import sys

if __name__ == "__main__" and not sys.stdin.read(1):
    print(sys.argv[1], file=sys.stderr)
