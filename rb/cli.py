"""The ``rb`` command: ``train prepare data toy track metrics weights``. Parses and hands over; all logic lives elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """All commands; each room adds its own."""
    import rb.data.commands as data_commands
    import rb.exporting.commands as export_commands
    import rb.model.weights.commands as weights_commands
    from rb.ablate import commands as ablate_commands
    from rb.api import commands as api_commands
    from rb.data import prepare
    from rb.evaluation import doctor
    from rb.pages import show_data
    from rb.toy import commands as toy_commands
    from rb.tracking import commands as tracking_commands
    from rb.training import config_commands, import_released

    parser = argparse.ArgumentParser(prog="rb", description="RegionBLIP: prepare data, train, evaluate.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="start a training run under the deepspeed launcher", add_help=False)
    show_data.add_command(data_commands.add_commands(commands))
    for room in (
        prepare,
        toy_commands,
        tracking_commands,
        weights_commands,
        import_released,
        config_commands,
        doctor,
        ablate_commands,
        export_commands,
        api_commands,
    ):
        room.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what a user can cause ends in one line on stderr and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["train"]:
            # The launcher's own options pass through untouched, so this one is not parsed here.
            from rb import train

            return train.launch(argv[1:])
        args = build_parser().parse_args(argv)
        return int(args.run(args) or 0)
    except (ValueError, OSError) as error:
        print(f"rb: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
