"""Hostile files by mutation: the readers of untrusted files, sound files of each kind, and a loop that alters these and reads them.

Run as a process (``python -m tests.support.hostile CASES SECONDS SEED``), so that a reader that dies takes nothing along and its peak of
memory can be seen; it prints one JSON line. Used by ``tests/test_hostile.py`` and ``tests/drill/test_hostile.py``.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

from rb.core.json_stream import stream_list, stream_lists
from rb.core.run_file import load_run
from rb.core.strict_json import parse_lines, read
from rb.data.formats import parse_record, read_manifest
from rb.data.index import ManifestReader
from rb.data.prepare.array_pickle import ArrayPickle
from rb.data.prepare.cap3d import read_captions
from rb.data.prepare.cloud_zips import CloudZips
from rb.data.prepare.clouds import parse_npy_labels, read_cloud
from rb.data.prepare.coco_files import open_captions
from rb.data.prepare.common import Reason, RejectedError, read_json
from rb.data.prepare.custom_tars import columns_of_tars, find_samples, read_sample
from rb.data.prepare.parquet_files import read_parquet
from rb.data.prepare.proposals import read_proposals
from rb.data.prepare.refcoco_forms import find_form
from rb.data.prepare.safe_pickle import load_plain_pickle
from rb.data.prepare.scannet_files import read_objects, read_segments
from rb.data.prepare.tables import read_csv
from rb.data.prepare.xml_files import read_xml
from rb.data.tars import scan_shard
from rb.launching.hostfile import read_hostfile
from rb.launching.secrets import read_environment_file
from rb.model.weights.readers import read_headers, read_tensors
from rb.sources.pixels import decode_image
from rb.sources.points import decode_points, encode_points
from rb.tracking.bad_steps import read_bad_steps
from rb.tracking.journal import metric_points
from tests.support import hostile_annotations
from tests.support.hostile_clouds import PCD, PLY, XYZ
from tests.support.hostile_tars import TARS
from tests.support.small_data import write_set

WORDS = (
    b"[",
    b"{",
    b'"',
    b"\\ud800",
    b"1e999",
    b"9" * 5000,
    b"-1",
    b"NaN",
    b"\x00",
    b"\xff" * 8,
    b"&a ",
    b"*a",
    b"<<: ",
    b"[" * 2000,
)
XML = b"""<annotation>
\t<size>\n\t\t<width>32</width>\n\t\t<height>24</height>\n\t</size>
\t<object>\n\t\t<name>1</name>\n\t\t<bndbox>\n\t\t\t<xmin>1</xmin>\n\t\t\t<ymin>2</ymin>\n\t\t</bndbox>\n\t</object>
</annotation>
"""
Read = Callable[[Path], Any]


def parquet_bytes() -> bytes:
    """Three rows of texts and boxes."""
    rows = [{"file": f"{i}.png", "caption": "a cube", "bbox": [1.0, 2.0, 3.0, 4.0 + i]} for i in range(3)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def ref_l4_bytes() -> bytes:
    """Three rows as Ref-L4 has them."""
    name = "COCO_train2014_000000000009.jpg"
    row = {
        "caption": "a cube",
        "bbox": [1.0, 2.0, 3.0, 4.5],
        "image_id": "coco_9",
        "width": 9,
        "height": 9,
        "split": "val",
    }
    rows = [{"id": i, "bbox_id": f"b{i}", "file_name": name} | row for i in range(3)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def rows_of(path: Path, name: str) -> None:
    """Every row of a form of RefCOCO, with its box where it has one."""
    form = find_form(path.parent, name)
    assert form is not None
    for row in form.rows("val", "sent", Counter()):
        with contextlib.suppress(RejectedError):
            row.box()


def readers(folder: Path) -> dict[str, tuple[str, Read, list[bytes]]]:
    """Kind -> (name of the file, its reader, sound files)."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(3, 4, generator=generator), "b": torch.arange(5)}
    torch_file = io.BytesIO()
    torch.save({"model": tensors}, torch_file)
    old_file = io.BytesIO()
    torch.save(tensors, old_file, _use_new_zipfile_serialization=False)
    tensor_file = io.BytesIO()
    torch.save(torch.randn(6, 40, generator=generator).abs(), tensor_file)
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 31, 3), dtype=np.uint8))
    images = []
    for kind in ("JPEG", "PNG", "WEBP"):
        stream = io.BytesIO()
        pixels.save(stream, kind)
        images.append(stream.getvalue())
    points = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    points[:, 3:] = 0.5
    npz = io.BytesIO()
    np.savez_compressed(npz, points)
    write_set(folder / "set", "image_region", 3)
    manifest, index = ((folder / "set" / name).read_bytes() for name in ("manifest.json", "index.bin"))
    shard = next((folder / "set").glob("*.tar")).read_bytes()
    record = next(scan_shard(next((folder / "set").glob("*.tar")))).record.to_json()
    run = b"name: a\nmodel: &m {train_modalities: [image_region]}\noptim: {lr: 1e-4}\nseed: 3\n"
    row = b'{"kind": "metrics", "time": 1.0, "step": 1, "values": {"loss": 0.5, "x": "NaN"}}\n'
    bad_step = b'{"kind": "bad_step", "time": 1, "step": 1, "modality": "a", "ranks": [{"terms": ["b"], "losses": {"b": 1}, "ids": ["c"], "positions": [0]}]}\n'
    refs = [{"ref_id": 1, "sentences": [{"sent": "a caf\xe9", "tokens": ["a"]}], "bbox": (1.0, 2, True, None)}]

    def labels(path: Path) -> None:
        try:
            parse_npy_labels(path.read_bytes(), 40)
        except ValueError as error:
            raise RejectedError(Reason.BOXES_UNREADABLE, f"{path}: {error}") from None

    def zipped(path: Path) -> None:
        clouds = CloudZips([path], {"a", "b"}, (".npy", ".ply"))
        for uid in ("a", "b"):
            try:
                clouds.read(uid, 1 << 20)
            except (ValueError, KeyError) as error:
                raise RejectedError(Reason.POINTS_UNREADABLE, f"{path}: {error}") from None

    def arrays(path: Path) -> None:
        found = ArrayPickle(path)
        for row in found.rows:
            for stored in row:
                try:
                    found.read(stored)
                except ValueError as error:
                    raise RejectedError(Reason.POINTS_UNREADABLE, f"{path}: {error}") from None

    clouds_zip = io.BytesIO()
    with zipfile.ZipFile(clouds_zip, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("clouds/a.npy", encode_points(points))
        archive.writestr("clouds/b.ply", b"ply\nformat ascii 1.0\n")
    whole = io.BytesIO()
    np.save(whole, np.arange(40, dtype=np.uint32))
    groups = [{"id": k, "objectId": k, "segments": [k, k + 9], "label": "chair"} for k in range(3)]
    groups_file = json.dumps({"sceneId": "scannet.s", "segGroups": groups}).encode()

    def whole_set(path: Path) -> None:
        reader = ManifestReader(path.parent / "set", verify=True)
        for number in range(min(len(reader), 50)):
            reader.sample(number)
        reader.close()

    def index_of_a_set(path: Path) -> None:
        tree = json.loads(manifest)
        from rb.core.files import sha256

        data = path.read_bytes()
        tree["index"] |= {"bytes": len(data), "sha256": sha256(data)}
        target = path.parent / "set"
        for name, content in (("index.bin", data), ("manifest.json", json.dumps(tree).encode())):
            (target / name).unlink()
            (target / name).write_bytes(content)
        whole_set(path)

    own_tar = io.BytesIO()
    with tarfile.open(fileobj=own_tar, mode="w") as tar:
        for key in "ab":
            for extension, data in (("jpg", images[0]), ("json", b'{"caption": "a cat"}'), ("txt", b"a cat")):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    def samples_of_tar(path: Path) -> None:
        found = find_samples([path], {"val": 0.5})
        if found.bad:
            raise ValueError(": ".join(found.bad[0]))
        columns, _ = columns_of_tars(found, {}, str(path))
        for places in found.splits.values():
            for place in places:
                sample = read_sample(place, columns, None)
                if isinstance(sample.image, RejectedError):
                    raise ValueError(f"{path}: {sample.image}")

    return {
        "JSON": ("a.json", read, [manifest, record]),
        "JSON of others": (
            "a.json",
            lambda p: read_json(p, frozenset({"id", "a"}), Counter()),
            [record, b'[{"id": 1}]'],
        ),
        "JSON list": (
            "a.json",
            lambda p: list(stream_list(p, None, Counter())),
            [b'[{"id": 1, "box": [1, 2.5]}, "a"]'],
        ),
        "JSON lists": (
            "a.json",
            lambda p: list(stream_lists(p, {"a": None, "b": None}, Counter(), others={})),
            [b'{"info": {"x": "y"}, "a": [{"id": 1}, {"id": 2}], "c": [[1]], "b": [[1, 2.5], "\\u00e9"]}'],
        ),
        "MDETR": (
            "finetune_refcoco_val.json",
            lambda p: rows_of(p, "refcoco"),
            [
                b'{"images": [{"id": 0, "original_id": 9, "file_name": "a", "height": 4, "width": 4, "caption": "a cat"}], '
                b'"annotations": [{"id": 0, "image_id": 0, "original_id": 7, "bbox": [1, 2, 1.5, 2]}]}'
            ],
        ),
        "Ref-L4": ("ref-l4-val.parquet", lambda p: rows_of(p, "ref-l4"), [ref_l4_bytes()]),
        "JSONL": ("a.jsonl", lambda p: list(parse_lines(p.read_bytes(), str(p))), [row * 3]),
        "record": ("a.json", lambda p: parse_record(p.read_bytes(), str(p)), [record]),
        "manifest": ("manifest.json", read_manifest, [manifest]),
        "journal": (
            "journal.jsonl",
            lambda p: (metric_points(p, on_bad=lambda _: None), read_bad_steps(p)),
            [row * 3, bad_step],
        ),
        "YAML": ("a.yaml", load_run, [run]),
        "tar": ("a.tar", lambda p: list(scan_shard(p)), [shard, *TARS.values()]),
        "own tar": ("a.tar", samples_of_tar, [own_tar.getvalue(), *TARS.values()]),
        "index": ("index.bin", index_of_a_set, [index]),
        "safetensors": ("a.safetensors", lambda p: (read_headers(p), read_tensors(p)), [save_tensors(tensors)]),
        "torch": ("a.pth", lambda p: (read_headers(p), read_tensors(p)), [torch_file.getvalue(), old_file.getvalue()]),
        "pickle of arrays": (
            "a.dat",
            arrays,
            [pickle.dumps([[points] * 2, [np.arange(1)]], protocol=n) for n in (2, 3, 4)],
        ),
        "zip of clouds": ("a.zip", zipped, [clouds_zip.getvalue()]),
        "pickle": ("a.p", load_plain_pickle, [pickle.dumps(refs, protocol=n) for n in range(5)]),
        "npz": ("a.npz", lambda p: read_cloud(p, 1), [npz.getvalue()]),
        "pt": ("a.pt", lambda p: read_cloud(p, 1), [tensor_file.getvalue()]),
        "npy": ("a.npy", lambda p: read_cloud(p, 1), [encode_points(points)]),
        "ply": ("a.ply", lambda p: read_cloud(p, 1), PLY),
        "pcd": ("a.pcd", lambda p: read_cloud(p, 1), PCD),
        "xyz": ("a.xyz", lambda p: read_cloud(p, 1), XYZ),
        "list of images": (
            "train.json",
            lambda p: open_captions(p).entries(Counter()),
            [
                b'[{"image": "val2014/COCO_val2014_000000000042.jpg", "caption": ["a cat"]}]',
                b'{"images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}], "annotations": [{"image_id": 9, "caption": "a"}]}',
                b'{"images": [{"filename": "a.jpg", "cocoid": 9, "split": "val", "sentences": [{"raw": "a cat"}]}]}',
            ],
        ),
        "labels": ("a.npy", labels, [whole.getvalue()]),
        "objects of a scan": ("a.aggregation.json", lambda p: read_objects(p.parent, "a"), [groups_file]),
        "segments of a scan": ("a.segs.json", lambda p: read_segments(p, 9), [b'{"segIndices": [1,2,3,4,5,5,5,8,9]}']),
        "proposals": (
            "a.json",
            lambda p: read_proposals(p, "minmax", ["scene0000_00"], Counter()),
            [b'{"scene0000_00": [{"box": [0,0,0,1,2,3.5], "caption": "a chair"}, [1,1,1,2,2,2]]}'],
        ),
        "points": ("a.npy", lambda p: decode_points(p.read_bytes(), str(p)), [encode_points(points)]),
        "table": (
            "a.csv",
            lambda p: list(read_csv(p, Counter())),
            [b'file,caption,x,y,w,h\na.png,"a ""b"", c",1,2,3,4\n'],
        ),
        "Parquet": ("a.parquet", lambda p: list(read_parquet(p, Counter())), [parquet_bytes()]),
        "XML": ("1.xml", read_xml, [XML]),
        "CSV": ("a.csv", lambda p: read_captions(p, Counter()), [b'0123456789,"a ""b"", c"\nabcdefghij,two words\n']),
        "hostfile": ("hostfile", read_hostfile, [b"node1 slots=8\n10.0.0.2 slots=4  # spare\n\nn3.rack slots=1\n"]),
        ".deepspeed_env": (
            ".deepspeed_env",
            read_environment_file,
            [b"NCCL_DEBUG=INFO\nNCCL_SOCKET_IFNAME=eth0\nPYTHONPATH=/a:/b\n"],
        ),
        "image": ("a.png", lambda p: decode_image(p.read_bytes(), str(p)), images),
        **hostile_annotations.readers(folder),
    }


def altered(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to six changes: flipped bits, bytes, numbers at their limits, words, cut, doubled or swapped pieces."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at, to = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        kind = rng.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif kind == 2:
            number = rng.choice((0, 1, 127, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
            size = rng.choice((1, 2, 4, 8))
            out[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, rng.choice(("little", "big")))
        elif kind == 3:
            out[at:at] = rng.choice(WORDS)
        elif kind == 4:
            del out[at : min(to, at + 64)]
        elif kind == 5:
            out[at:at] = out[at : min(to, at + 2000)]
        elif kind == 6:
            piece = rng.choice(others)
            start = rng.randrange(len(piece) + 1)
            out[at:to] = piece[start : start + 200]
        elif rng.random() < 0.2:
            del out[at:]
    return bytes(out[: 1 << 20])


def taken(kind: str, file: str, reader: Read, folder: Path, data: bytes) -> bool:
    """Whether the reader takes ``data`` as a file of its kind, or refuses it with a line.

    Raises:
        AssertionError: it raised another error than a line for the user, or one that does not name its file; ``data`` is kept.
    """
    path = folder / file
    path.write_bytes(data)
    try:
        reader(path)
        return True
    except (ValueError, RejectedError) as error:
        message = str(error)
        assert file in message or "manifest" in message or "set/" in message, (kind, message[:300])
        assert "\n" not in message, (kind, message[:300])
        assert len(message) < 4000, (kind, message[:300])
        return False
    except BaseException as error:
        kept = Path(tempfile.gettempdir()) / f"rb-hostile-{kind.replace(' ', '-')}"
        kept.write_bytes(data)
        raise AssertionError(f"{kind}: {type(error).__name__} in place of a line, by {kept}: {error}") from error


def run(cases: int, seconds: float, seed: int) -> dict[str, Any]:
    """At least ``cases`` files of every kind, and more until ``seconds`` are over.

    Raises:
        AssertionError: a reader raised another error than a line for the user, or one that does not name its file.
    """
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = readers(folder)
        for row in table.values():  # what the libraries load at their first use is no growth
            path = folder / row[0]
            path.write_bytes(row[2][0])
            row[1](path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for kind, (file, reader, sound) in table.items():
            rng, count, refused, slowest = random.Random(f"{seed} {kind}"), 0, 0, 0.0
            until = time.monotonic() + seconds / len(table)
            while count < cases or time.monotonic() < until:
                data = sound[count] if count < len(sound) else altered(rng.choice(sound), sound, rng)
                began = time.process_time()
                refused += not taken(kind, file, reader, folder, data)
                slowest = max(slowest, time.process_time() - began)
                count += 1
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            report[kind] = {
                "cases": count,
                "refused": refused,
                "slowest_s": round(slowest, 3),
                "growth_mb": (peak - before) // 1024,
            }
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))) + "\n")
