"""``rb mine show``: a page of random regions by stage and reason, kept and dropped, each with picture, mask, texts and scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rb.core.seeding import generator, hash_key
from rb.drawing.cards import caption_line, card, group, missing
from rb.drawing.page import Html, esc, facts, navigation, note, write_page
from rb.drawing.pictures import image_with_box
from rb.mining.inputs import InputImage, InputShard
from rb.mining.record import ImageRecord, Region, read_records
from rb.mining.stage import stage_file
from rb.mining.views import decode_mask

KEPT = "kept"
SHARDS = 8  # that are read: chosen at random, which is enough for a look and quick for any size of job
_DIM = 0.45  # brightness of what is outside of a mask


@dataclass(frozen=True)
class _Shown:
    """A region of the page."""

    shard: InputShard
    record: ImageRecord
    region: Region


def show(
    out: Path, page: Path, stages: Sequence[str], shards: Sequence[InputShard], count: int = 12, seed: int = 0
) -> int:
    """Write the page; returns how many regions it shows. Of each shard the newest stage's file is looked at, so a running job can be shown too.

    Args:
        stages: their names, in order.
        count: regions of each reason, at most.
        seed: of the choice.

    Raises:
        ValueError: no stage has finished a shard yet.
    """
    found, looked_at = _found(out, stages, shards, seed)
    if not found:
        raise ValueError(f"{out}: holds no region yet; wait until the first stage has finished a shard")
    order = {stage: number for number, stage in enumerate(stages)}
    names = sorted(found, key=lambda name: (name != KEPT, order.get(name.split(": ")[0], len(order)), name))
    chosen = {
        name: sorted(found[name], key=lambda item: hash_key("mine show", seed, item.region.id))[:count]
        for name in names
    }
    pictures = _pictures([item for name in names for item in chosen[name]])
    parts = []
    for number, name in enumerate(names):
        cards = "".join(_card(item, pictures.get(item.record.key)) for item in chosen[name])
        title = f"{name}: {len(found[name]):,}" if name == KEPT else f"dropped by {name}: {len(found[name]):,}"
        parts.append(
            f'<section id="g{number}">{group(title, [("random", "Random", "Drawn at random.")], cards)}</section>'
        )
    total = sum(map(len, found.values()))
    head = facts(
        {
            "shards looked at": looked_at,
            "of": len(shards),
            "regions in them": total,
            "kept": f"{len(found.get(KEPT, [])) / total:.1%}",
        }
    )
    body = f"<h1>Mined regions</h1>{navigation((f'g{i}', name) for i, name in enumerate(names))}{head}"
    body += note(
        f"{out}: up to {count} regions of each reason, seed {seed}. What lies outside of a region's mask is dimmed."
    )
    write_page(page, f"Mined regions, {out.name}", body + "".join(parts))
    return sum(map(len, chosen.values()))


def _found(
    out: Path, stages: Sequence[str], shards: Sequence[InputShard], seed: int
) -> tuple[dict[str, list[_Shown]], int]:
    """All regions of some shards by what became of them, and how many shards these are."""
    found: dict[str, list[_Shown]] = defaultdict(list)
    looked_at = 0
    for place in generator("mine show", seed).permutation(len(shards)).tolist():
        shard = shards[place]
        files = [stage_file(out, stage, shard.number) for stage in reversed(stages)]
        newest = next((file for file in files if file.is_file()), None)
        if newest is None:
            continue
        for record in read_records(newest):
            for region in record.regions:
                dropped = region.dropped
                found[KEPT if dropped is None else f"{dropped.stage}: {dropped.reason}"].append(
                    _Shown(shard, record, region)
                )
        looked_at += 1
        if looked_at == SHARDS:
            break
    return dict(found), looked_at


def _pictures(chosen: Sequence[_Shown]) -> dict[str, Image.Image]:
    """The images of the regions by key; one that cannot be read any more is left out."""
    wanted: dict[int, set[str]] = defaultdict(set)
    for item in chosen:
        wanted[item.shard.number].add(item.record.key)
    pictures = {}
    for shard in {item.shard.number: item.shard for item in chosen}.values():
        for image in shard.images() if shard.path.is_file() else ():
            if isinstance(image, InputImage) and image.key in wanted[shard.number]:
                pictures[image.key] = image.decode()
    return pictures


def _card(item: _Shown, image: Image.Image | None) -> Html:
    record, region = item.record, item.region
    if image is None:
        picture = missing("the input shard is gone or holds another image")
    else:
        mask = Image.fromarray(decode_mask(region.rle, (record.width, record.height)))
        seen = Image.composite(image, image.point(lambda value: int(value * _DIM)), mask)
        picture = image_with_box(seen, region.box, region.caption or region.name or region.id)
    scores = {
        "predicted IoU": region.predicted_iou,
        "stability": region.stability,
        "log-probability": region.name_logprob,
        "similarity": region.similarity,
    }
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in scores.items() if value is not None)
    texts = {
        "name": region.name,
        "chunks, of name and image": " | ".join(region.chunks) if region.chunks else None,
        "description": region.text,
        "rewritten": region.refined,
        "caption of the image": record.caption,
        "text that came with it": record.alt,
    }
    lines = "".join(f"<div>{caption_line(name)}<div>{esc(text)}</div></div>" for name, text in texts.items() if text)
    box = ", ".join(f"{value:g}" for value in region.box)
    return card(picture, Html(f"<div>{caption_line(f'box {box}', numbers)}</div>{lines}"), [], region.id)
