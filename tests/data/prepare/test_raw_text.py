"""Text files in any encoding keep their letters, in every converter; captions that are no caption are rejected with a reason."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rb.core.text import is_caption
from rb.core.text_encoding import ENCODING_NOTE
from rb.data.formats import FormatError, Record, read_rejected
from rb.data.prepare import cap3d, objaverse, scanrefer
from rb.data.prepare.common import read_json
from rb.data.prepare.raw_text import read_text
from rb.data.prepare.safe_pickle import load_plain_pickle
from rb.data.shard_writer import ShardWriter
from tests.data.prepare.test_scanrefer import boxes_of, described, write_raw
from tests.support.raw_data import convert
from tests.support.small_data import image_bytes

TEXT = "a café table with a naïve décor"


def uid(k: int) -> str:
    return f"{k:032x}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp1252", "latin-1"])
def test_a_table_of_captions_keeps_its_letters(tmp_path: Path, encoding: str) -> None:
    raw = tmp_path / "raw"
    (raw / "8192_npy").mkdir(parents=True)
    np.save(raw / f"8192_npy/{uid(1)}_8192.npy", np.random.default_rng(0).normal(size=(600, 3)))
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (raw / "Cap3D_automated_Objaverse.csv").write_bytes(mark + f"{uid(1)},{TEXT}\r\n".encode(encoding))
    (raw / "train.txt").write_bytes(mark + f"{uid(1)}\r\n".encode(encoding))
    notes: Counter[str] = Counter()
    table = cap3d.read_captions(raw / "Cap3D_automated_Objaverse.csv", notes)
    assert {key: text.strip() for key, text in table.captions.items()} == {uid(1): TEXT}
    assert notes[ENCODING_NOTE] == (3 if encoding in ("cp1252", "latin-1") else 0)
    tally = convert(objaverse, raw, tmp_path / "out", "train")
    assert tally.captions == 1
    assert (ENCODING_NOTE in tally.table("x")) == (encoding in ("cp1252", "latin-1"))


def test_one_line_of_another_encoding_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("11111111,日本 é\n22222222,".encode() + "“é” costs 5 €\n".encode("cp1252"))
    table = cap3d.read_captions(file, Counter())
    assert table.captions == {"11111111": "日本 é", "22222222": "“é” costs 5 €"}
    file.write_bytes(b"caf\xe9 \x81")  # a byte that Windows-1252 does not have
    assert read_text(file, Counter()) == "café \x81"
    file.write_bytes(b"\xff\xfea")
    with pytest.raises(ValueError, match=r"a\.csv: its first bytes say utf-16-le, but it is not"):
        read_text(file, Counter())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_json_and_pickles_follow_the_same_rule(tmp_path: Path, encoding: str) -> None:
    raw = write_raw(tmp_path / "raw", boxes_of(np.array([[0.5, 0.5]])))
    rows = json.dumps([described(0, TEXT)], ensure_ascii=False)
    (raw / "ScanRefer_filtered_val.json").write_bytes(rows.encode(encoding))
    tally = convert(scanrefer, raw, tmp_path / "out", "val")
    assert (tally.used, tally.notes[ENCODING_NOTE]) == (1, 3 if encoding == "cp1252" else 0)
    found = read_json(raw / "ScanRefer_filtered_val.json", frozenset({"description"}), Counter())
    assert found == [{"description": TEXT}]
    quoted = "“" + TEXT + "”"
    (tmp_path / "x.p").write_bytes(b"S'" + quoted.encode("cp1252") + b"'\n.")
    assert load_plain_pickle(tmp_path / "x.p") == quoted
    (tmp_path / "x.p").write_bytes(pickle.dumps(quoted, 2))
    assert load_plain_pickle(tmp_path / "x.p") == quoted


NOTHING = ["nan", "NaN", " None ", "null", "N/A", "-", "--", "?", "...", "\u200b", "\ufeff\u2060", "_", ""]


def test_what_is_no_caption() -> None:
    assert not [text for text in NOTHING if is_caption(text)]
    said = ["a nan bread", "none of the above", "man", "3", "日本", "É", "?a", "nano"]
    assert [text for text in said if is_caption(text)] == said


def test_words_for_nothing_are_rejected_and_counted(tmp_path: Path) -> None:
    rows = [described(0, text, ann_id=str(k)) for k, text in enumerate(["a stool.", *NOTHING])]
    raw = write_raw(tmp_path / "raw", boxes_of(np.array([[0.5, 0.5]])), rows=rows)
    tally = convert(scanrefer, raw, tmp_path / "out", "val")
    assert (tally.used, dict(tally.rejected)) == (1, {"no_caption": len(NOTHING)})
    assert "none of ['nan'] is a caption" in read_rejected(tmp_path / "out/rejected.jsonl")[0].detail


@pytest.mark.parametrize("text", ["nan", "\u200b", "?"])
def test_records_with_a_caption_that_is_none_are_refused(tmp_path: Path, text: str) -> None:
    with ShardWriter(tmp_path / "set", "x", "image", "train") as writer:
        writer.write(Record("x/0", "x", "train", 20, 14, ["a cube"]), image_bytes(0), "png")
        with pytest.raises(FormatError, match="a caption without words"):
            writer.write(Record("x/1", "x", "train", 20, 14, ["a cube", text]), image_bytes(0), "png")
