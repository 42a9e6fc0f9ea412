"""``rb caption``: captions of one image or of boxes in it, as lines or JSON. The work is done by ``rb/api/model.py``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``rb caption``."""
    caption = commands.add_parser("caption", help="caption an image or boxes in it")
    caption.add_argument("image", type=Path, help="JPEG, PNG or WebP")
    caption.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="run folder, checkpoint, export, or one modality's folder of an export",
    )
    caption.add_argument(
        "--box",
        type=float,
        nargs=4,
        action="append",
        metavar=("X1", "Y1", "X2", "Y2"),
        help="a region; may be repeated",
    )
    caption.add_argument("--normalised", action="store_true", help="boxes are divided by width and height, not pixels")
    caption.add_argument("--foundation", type=Path, help="folder with blip2-*/ and text_branch/; an export needs it")
    caption.add_argument(
        "--allow", action="append", default=[], choices=["foundation"], help="accept another foundation than trained on"
    )
    caption.add_argument("--prompt", help="text that the caption goes on from")
    caption.add_argument("--device", default="cpu")
    caption.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    caption.set_defaults(run=run_caption)


def run_caption(args: argparse.Namespace) -> int:
    """Print the captions."""
    from rb.api import RegionBLIP  # loads transformers and peft, which other commands need not wait for

    if not args.image.is_file():
        raise ValueError(f"{args.image}: no such file")
    model = RegionBLIP.from_pretrained(args.checkpoint, args.foundation, args.device, args.allow)
    box_format = "normalised" if args.normalised else "pixels"
    if args.box is None:
        captions = [model.caption(args.image, prompt=args.prompt)]
    else:
        captions = model.caption(args.image, args.box, prompt=args.prompt, box_format=box_format)
    if args.json:
        rows = [{"box": box, "caption": text} for box, text in zip(args.box or [None], captions, strict=True)]
        answer = {"image": str(args.image), "box_format": box_format if args.box else None, "captions": rows}
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        sys.stdout.write("".join(f"{text}\n" for text in captions))
    return 0
