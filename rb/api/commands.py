"""``rb caption``: captions of one image or of boxes in it, as lines or JSON. The work is done by ``rb/api/model.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rb.core.device import add_device, usable_device
from rb.core.exit_codes import FINISHED
from rb.core.output import add_json, note, say, say_json
from rb.inference.commands import add_foundation


def add_caption(parser: argparse.ArgumentParser) -> None:
    """``rb caption``."""
    parser.add_argument("image", type=Path, help="JPEG, PNG or WebP")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="run folder, checkpoint, export, or one modality's folder of an export",
    )
    parser.add_argument(
        "--box",
        type=float,
        nargs=4,
        action="append",
        metavar=("X1", "Y1", "X2", "Y2"),
        help="a region; may be repeated",
    )
    parser.add_argument("--normalised", action="store_true", help="boxes are divided by width and height, not pixels")
    add_foundation(parser)
    parser.add_argument("--prompt", help="text that the caption goes on from")
    add_device(parser)
    add_json(parser)
    parser.set_defaults(run=run_caption)


def run_caption(args: argparse.Namespace) -> int:
    """Print the captions. A file or box that cannot be used is refused before the model is loaded."""
    device = usable_device(args.device)
    import rb.api.inputs as inputs
    from rb.sources.pixels import UPRIGHT

    if not args.image.is_file():
        raise ValueError(f"{args.image}: no such file")
    image, orientation = inputs.rgb_image(args.image, str(args.image))
    if orientation != UPRIGHT:
        note(
            f"{args.image}: turned upright (EXIF orientation {orientation}): {image.width} x {image.height} pixels; boxes are of this image"
        )
    box_format = "normalised" if args.normalised else "pixels"
    for number, box in enumerate(args.box or ()):
        inputs.image_box(box, image.size, box_format, f"--box {number + 1}")

    from rb.api import RegionBLIP

    model = RegionBLIP.from_pretrained(args.checkpoint, args.foundation, device, args.allow)
    if args.box is None:
        captions = [model.caption(image, prompt=args.prompt)]
    else:
        captions = model.caption(image, args.box, prompt=args.prompt, box_format=box_format)
    if args.json:
        rows = [{"box": box, "caption": text} for box, text in zip(args.box or [None], captions, strict=True)]
        turned = {"size": list(image.size), "turned_upright": orientation != UPRIGHT}
        say_json({"image": str(args.image), **turned, "box_format": box_format if args.box else None, "captions": rows})
    else:
        say("\n".join(captions))
    return FINISHED
