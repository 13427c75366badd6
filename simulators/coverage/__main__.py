"""``python -m simulators.coverage``."""

import sys

from simulators.coverage.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
