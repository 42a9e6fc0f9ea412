"""``rb table`` under its former name, ``python -m eval.table``."""

from functools import partial

from rb import cli

main = partial(cli.main_of, "table")

if __name__ == "__main__":
    cli.entry("table")
