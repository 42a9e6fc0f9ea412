"""`rb data show`: every example with its picture, box and captions; what cannot be shown is a clear error."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.core.modality import MODALITIES, modality_spec
from rb.data.index import ManifestReader
from rb.data.shard_writer import ShardWriter
from tests.support import small_data
from tests.support.page_rules import check_page


class Cards(HTMLParser):
    """Counts cards and pictures; keeps all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cards, self.pictures, self.text = 0, 0, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.cards += tag == "article"
        self.pictures += tag in ("svg", "img", "canvas")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("modality", list(MODALITIES))
def test_every_example_is_shown_with_its_box_and_all_that_is_said(modality: str, tmp_path: Path, capsys) -> None:
    small_data.write_set(tmp_path / "set", modality, 5)
    page = tmp_path / "page.html"
    assert rb(["data", "show", str(tmp_path / "set"), "--out", str(page)]) == 0
    reader = ManifestReader(tmp_path / "set" / "manifest.json")
    found, count = Cards(page), reader.num_examples
    check_page(page.read_text(encoding="utf-8"))
    assert f"{page}: {count} examples" in capsys.readouterr().out
    assert found.cards == count
    assert found.pictures >= count
    regional = modality_spec(modality).regional
    for number in range(count):
        example = reader.example(number)
        assert example.id in found.text
        assert all(text in found.text for text in example.references)
        assert (example.item is not None) == regional
        if example.item:
            assert f"box {', '.join(f'{value:g}' for value in example.item.box)}" in found.text
    # One alone, by its number.
    assert rb(["data", "show", str(tmp_path / "set"), "--index", str(count - 1), "--out", str(page)]) == 0
    one = Cards(page)
    assert one.cards == 1
    assert reader.example(count - 1).id in one.text
    reader.close()


def test_captions_of_the_whole_image_and_what_was_left_out_are_shown(tmp_path: Path) -> None:
    record = small_data.record("image_region", 0)
    with ShardWriter(tmp_path / "set", "small", "image_region", "train") as writer:
        writer.write(replace(record, captions=["Two men in a yard ."]), *small_data.media("image_region", 0))
        for _ in range(1200):
            writer.reject("a", "box_empty", "no box")
    page = tmp_path / "page.html"
    assert rb(["data", "show", str(tmp_path / "set"), "--out", str(page)]) == 0
    found = Cards(page)
    assert "of the whole sourceTwo men in a yard ." in found.text
    assert "Left out when the set was made, listed in rejected.jsonl: box_empty 1,200." in found.text


def test_what_cannot_be_shown_is_said(tmp_path: Path, capsys) -> None:
    small_data.write_set(tmp_path / "set", "image", 3)
    page = tmp_path / "page.html"
    for arguments, words in (
        (["set", "--index", "3", "--out", page], "has examples 0 to 2"),
        (["set", "--count", "0", "--out", page], "must be at least 1"),
        (["nothing", "--out", page], "nothing"),
        (["set", "--out", tmp_path / "no" / "page.html"], "make it first"),
    ):
        assert rb(["data", "show", str(tmp_path / arguments[0]), *map(str, arguments[1:])]) == 2
        assert words in capsys.readouterr().err
    shard = next((tmp_path / "set").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[1200] ^= 1
    shard.write_bytes(bytes(data))
    assert rb(["data", "show", str(tmp_path / "set"), "--out", str(page)]) == 2
    assert shard.name in capsys.readouterr().err
    assert not page.exists()
