"""``python -m rb.inference``: one rank of ``rb predict --ranks N``, which the command starts with the same arguments."""

from __future__ import annotations

import argparse

from rb.core import heartbeat
from rb.core.exit_codes import guarded, leave
from rb.core.stopping import StopRequest
from rb.core.verbosity import add_options, set_verbosity
from rb.inference.commands import add_predict, run_predict


def main() -> int:
    """The rank's exit code."""
    heartbeat.begin()
    parser = argparse.ArgumentParser(prog="rb predict")
    add_predict(parser)
    add_options(parser)
    args = parser.parse_intermixed_args()
    StopRequest()  # predictions are written at the end, so until then a rank just leaves
    set_verbosity(args.verbosity)
    return guarded("rb predict", lambda: run_predict(args))


if __name__ == "__main__":
    leave(main())
