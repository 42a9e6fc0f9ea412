"""``rb bench captions``: many boxes of few images in one call of the Python API against one call for each box.

Says the time of both, their processor time (which other work on the machine hardly lengthens), the quotients, and whether the texts are
equal (exit code 1 if not). Boxes are random; images are the first files of a folder, or noise (then a model says little, mostly the same).
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
import torch
from PIL import Image

from rb.api import RegionBLIP
from rb.core import progress
from rb.core.device import usable_device
from rb.core.exit_codes import FAILED, FINISHED
from rb.core.seeding import generator
from rb.inference.load import load_base
from rb.sources.pixels import decode_upright


def run(args: argparse.Namespace) -> int:
    """Measure once, after a warm-up of both ways."""
    device = usable_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.boxes % args.images:
        raise ValueError(f"--boxes {args.boxes}: must be a multiple of --images {args.images}")
    if args.run_file is not None:
        model = RegionBLIP(load_base(args.run_file, device))
    else:
        model = RegionBLIP.from_pretrained(args.checkpoint, args.foundation, device)
    rng = generator("caption speed")
    images = _pictures(args, rng)
    low = rng.uniform(0, 0.6, (args.images, args.boxes // args.images, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, low.shape)], axis=2)
    model.caption(images[:1], boxes[:1, :2], box_format="normalised")

    start, start_cpu = time.perf_counter(), time.process_time()
    together = model.caption(images, boxes, box_format="normalised", batch_size=args.batch_size)
    one_call, one_call_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    pairs = [(image, box) for image, rows in zip(images, boxes, strict=True) for box in rows]
    start, start_cpu = time.perf_counter(), time.process_time()
    single = [
        model.caption(image, box, box_format="normalised") for image, box in progress.bar(pairs, desc="single calls")
    ]
    calls, calls_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    equal = [text for texts in together for text in texts] == single
    sizes = ", ".join(sorted({f"{image.width} x {image.height}" for image in images}))
    print(f"{args.boxes} boxes of {args.images} images ({sizes}), batches of {args.batch_size}, {model.decode}")
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.platform()}")
    print(f"one call {one_call:.2f} s, {args.boxes} calls {calls:.2f} s: {calls / one_call:.2f} times faster")
    print(f"processor time {one_call_cpu:.2f} s and {calls_cpu:.2f} s: {calls_cpu / one_call_cpu:.2f} times less")
    print(f"texts equal: {'yes' if equal else 'NO'} ({len(set(single))} different ones)")
    return FINISHED if equal else FAILED


def _pictures(args: argparse.Namespace, rng: np.random.Generator) -> list[Image.Image]:
    """``--images`` images, decoded."""
    if args.pictures is None:
        width, height = args.size
        return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(args.images)]
    files = sorted(p for p in args.pictures.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if len(files) < args.images:
        raise ValueError(f"--pictures {args.pictures}: holds {len(files)} images, fewer than --images {args.images}")
    return [decode_upright(path.read_bytes(), str(path))[0] for path in files[: args.images]]
