"""``rb report`` under its former name, ``python -m eval.report``."""

from functools import partial

from rb import cli

main = partial(cli.main_of, "report")

if __name__ == "__main__":
    cli.entry("report")
