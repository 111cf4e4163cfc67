"""python -m optnet: the same as the command optnet."""

import sys

from optnet.app.main import main

if __name__ == "__main__":
    sys.exit(main())
