"""``python -m rb.gpu_check``: names what is missing, before torch is imported; the work is done by ``rb/gpu_check/check.py``."""

from __future__ import annotations

import sys

from rb.core.exit_codes import WRONG_REQUEST, leave
from rb.gpu_check.needs import BASE, missing


def main() -> int:
    """The exit code."""
    lacking = missing(BASE)
    if lacking:
        sys.stderr.write(f"gpu_check: error: not installed: {', '.join(lacking)}; pip install {' '.join(lacking)}\n")
        return WRONG_REQUEST
    from rb.gpu_check.check import main as work

    return work()


if __name__ == "__main__":
    leave(main())
