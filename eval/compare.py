"""``rb compare`` under its former name, ``python -m eval.compare``."""

from functools import partial

from rb import cli

main = partial(cli.main_of, "compare")

if __name__ == "__main__":
    cli.entry("compare")
