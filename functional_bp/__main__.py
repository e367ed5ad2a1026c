"""``python -m functional_bp``: the same as the command ``functional-bp``."""

import sys

from functional_bp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
