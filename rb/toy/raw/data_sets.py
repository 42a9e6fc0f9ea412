"""Writes the toy world as the raw files of the real data sets, which the real converters then read.

COCO (Karpathy), RefCOCO and Objaverse are written here, ScanRefer in rb/toy/raw/rooms.py.

About one item in a hundred is spoiled on purpose, in every way that a converter must notice. Beside each data set lies ``truth.json``
(rb/toy/world/truth.py) of all items, keyed by the source id that the converter gives. ``rb toy raw`` runs it; what is spoiled is in rb/toy/raw/spoil.py.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rb.core import progress, seeding
from rb.toy.raw import spoil
from rb.toy.raw.files import plan, write_file, write_json
from rb.toy.raw.rooms import SCANREFER_KINDS, write_scanrefer
from rb.toy.world.scenes import ToyScene, cloud_captions, make_cloud, make_scene, region_expressions, whole_captions
from rb.toy.world.truth import scene_truth
from rb.toy.world.vocabulary import SHAPES

# Good items by data set and split; the spoiled ones come on top.
SCALES: dict[str, dict[str, dict[str, int]]] = {
    "small": {
        "coco": {"train": 24, "val": 12, "test": 16},
        "refcoco": {"train": 32, "val": 12, "test": 16},
        "objaverse": {"train": 32, "val": 12, "test": 16},
        "scanrefer": {"train": 24, "val": 8, "test": 8},
    },
    "demo": {
        "coco": {"train": 1000, "val": 200, "test": 200},
        "refcoco": {"train": 3000, "val": 80, "test": 80},
        "objaverse": {"train": 3000, "val": 200, "test": 200},
        "scanrefer": {"train": 1500, "val": 80, "test": 120},
    },
}
_RESTVAL = 4  # every fourth image of COCO's train is Karpathy's restval
_FIRST_REFCOCO_IMAGE = 500_001  # so that no toy image is in both data sets


def write_raw(out_dir: Path, seed: int, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, Path]:
    """Write ``coco``, ``refcoco``, ``objaverse`` and ``scanrefer`` below ``out_dir``; the same bytes for the same seed and sizes.

    Args:
        sizes: good items by data set and split, as in ``SCALES``; data sets that it does not name are not written.

    Returns:
        The folder of each data set, for ``rb prepare NAME --raw``.

    Raises:
        ValueError: unknown data set, or its folder holds files already.
    """
    writers = {"coco": write_coco, "refcoco": write_refcoco, "objaverse": write_objaverse, "scanrefer": write_scanrefer}
    unknown = set(sizes) - set(writers)
    if unknown:
        raise ValueError(f"unknown data set {min(unknown)!r}; known: {', '.join(writers)}")
    folders = {name: Path(out_dir) / name for name in sizes}
    for folder in folders.values():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder}: is not empty; choose another folder, or remove it first")
    kinds = {
        "coco": spoil.COCO_KINDS,
        "refcoco": spoil.REFCOCO_KINDS,
        "objaverse": spoil.OBJAVERSE_KINDS,
        "scanrefer": SCANREFER_KINDS,
    }
    total = sum(1 for name in sizes for _ in plan(sizes[name], kinds[name]))
    with progress.bar(total=total, desc="toy world", unit="item", delay=5) as bar:
        for name, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            writers[name](folder, seed, sizes[name], bar)
    return folders


def write_coco(folder: Path, seed: int, sizes: Mapping[str, int], bar: Any) -> None:
    """``dataset_coco.json`` and the images; val and test images lie in ``val2014``, as COCO's do."""
    images: list[dict[str, Any]] = []
    truth: dict[str, Any] = {}
    for split, index, kind in plan(sizes, spoil.COCO_KINDS):
        number = len(images) + 1
        scene = make_scene(seed, f"coco-{split}", index)
        karpathy = "restval" if split == "train" and index % _RESTVAL == _RESTVAL - 1 else split
        place = "train2014" if karpathy == "train" else "val2014"
        sentences = [
            {
                "tokens": text.replace(",", "").split(),
                "raw": f"{text[0].upper()}{text[1:]}.",
                "imgid": number - 1,
                "sentid": 5 * number + k,
            }
            for k, text in enumerate(whole_captions(scene))
        ]
        entry = {
            "filepath": place,
            "sentids": [s["sentid"] for s in sentences],
            "filename": f"COCO_{place}_{number:012d}.jpg",
            "imgid": number - 1,
            "split": karpathy,
            "sentences": sentences,
            "cocoid": number,
        }
        data: bytes | None = _jpeg(scene)
        truth[f"coco/{number}"] = scene_truth(scene)
        if kind is not None:
            entry, data = spoil.coco(kind, entry, data, first=images[0])
        images.append(entry)
        if data:
            write_file(folder / place / f"COCO_{place}_{number:012d}.jpg", data)
        bar.update()
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    write_json(folder / "truth.json", truth)


def write_refcoco(folder: Path, seed: int, sizes: Mapping[str, int], bar: Any) -> None:
    """``instances.json``, ``refs(google).p`` and the images, all of them COCO's ``train2014``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    truth: dict[str, Any] = {}
    for split, index, kind in plan(sizes, spoil.REFCOCO_KINDS):
        number = _FIRST_REFCOCO_IMAGE + len(images)
        scene = make_scene(seed, f"refcoco-{split}", index)
        name = f"COCO_train2014_{number:012d}"
        image = {"id": number, "file_name": f"{name}.jpg", "width": scene.width, "height": scene.height, "license": 1}
        facts = scene_truth(scene)
        first_annotation, first_ref = len(annotations), len(refs)
        for item, fact in zip(scene.objects, facts["objects"], strict=True):
            x1, y1, x2, y2 = item.box
            ann_id = len(annotations) + 1
            fact["object_id"] = str(ann_id)
            category = SHAPES.index(item.shape) + 1
            bbox = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
            polygon = [[round(v, 2) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]]
            annotations.append(
                {
                    "id": ann_id,
                    "image_id": number,
                    "category_id": category,
                    "bbox": bbox,
                    "segmentation": polygon,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": 0,
                }
            )
            texts = region_expressions(scene, item)
            if texts:
                ids = [4 * ann_id + k for k in range(len(texts))]
                refs.append(
                    {
                        "sent_ids": ids,
                        "file_name": f"{name}_{ann_id}.jpg",  # as in the real file: a running number behind, no file of COCO
                        "ann_id": ann_id,
                        "ref_id": len(refs) + 1,
                        "image_id": number,
                        "split": split,
                        "sentences": [
                            {"tokens": text.split(), "raw": text.capitalize(), "sent_id": i, "sent": text}
                            for i, text in zip(ids, texts, strict=True)
                        ],
                        "category_id": category,
                    }
                )
        data: bytes | None = _jpeg(scene)
        if kind is not None:
            data = spoil.refcoco(kind, image, annotations[first_annotation:], refs[first_ref:], data)
        truth[f"coco/{number}"] = facts
        images.append(image)
        if data:
            write_file(folder / "images" / "train2014" / f"{name}.jpg", data)
        bar.update()
    categories = [{"id": k, "name": shape, "supercategory": "solid"} for k, shape in enumerate(SHAPES, 1)]
    instances = {"info": {"description": "toy"}, "images": images, "annotations": annotations, "categories": categories}
    write_json(folder / "instances.json", instances)
    write_file(folder / "refs(google).p", pickle.dumps(refs, protocol=2))
    write_json(folder / "truth.json", truth)


def write_objaverse(folder: Path, seed: int, sizes: Mapping[str, int], bar: Any) -> None:
    """Cap3D's CSV, ULIP's folders of clouds, and a list of uids for each split."""
    rows: list[list[str]] = []
    lists: dict[str, list[str]] = {split: [] for split in sizes}
    truth: dict[str, Any] = {}
    for split, index, kind in plan(sizes, spoil.OBJAVERSE_KINDS):
        cloud = make_cloud(seed, f"objaverse-{split}", index)
        uid = seeding.generator("toy uid", seed, split, index).bytes(16).hex()
        # Cap3D has one caption of each object; commas in it are quoted by the writer.
        caption = cloud_captions(cloud, count=1)[0]
        data: bytes | None = _npz(cloud.points)
        truth[f"objaverse/{uid}"] = scene_truth(cloud)
        if kind is not None:
            caption, data = spoil.objaverse(kind, caption, cloud.points, data)
        rows += [[uid, caption]] * (2 if kind == "duplicate_source" else 1)
        lists[split].append(uid)
        if data:
            write_file(folder / "objaverse_pc_parallel" / uid / f"{uid}_{len(cloud.points)}.npz", data)
        bar.update()
    with (folder / "Cap3D_automated_Objaverse.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    for split, uids in lists.items():
        write_file(folder / f"{split}.txt", "".join(f"{uid}\n" for uid in uids).encode())
    write_json(folder / "truth.json", truth)


def _jpeg(scene: ToyScene) -> bytes:
    stream = io.BytesIO()
    # At 64 pixels the usual settings would blur the colours of small solids.
    Image.fromarray(scene.image).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def _npz(points: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, points)  # an unnamed array: "arr_0", as in ULIP's files
    return stream.getvalue()
