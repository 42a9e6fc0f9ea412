"""``rb predict`` under its former name, ``python -m eval.predict``."""

from functools import partial

from rb import cli

main = partial(cli.main_of, "predict")

if __name__ == "__main__":
    cli.entry("predict")
