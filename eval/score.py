"""``rb score`` under its former name, ``python -m eval.score``."""

from functools import partial

from rb import cli

main = partial(cli.main_of, "score")

if __name__ == "__main__":
    cli.entry("score")
