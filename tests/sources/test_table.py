"""The table of sources: every modality names a row, and nobody outside asks which source it is."""

from __future__ import annotations

import ast

import pytest

from rb.core.modality import MODALITIES, ModalitySpec
from rb.sources.table import SOURCES, media_extensions, source_of
from tests.test_layers import our_files


def test_every_modality_has_a_source() -> None:
    for name, spec in MODALITIES.items():
        assert source_of(name).name == spec.source


def test_an_unknown_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODALITIES, "sound", ModalitySpec("sound", "wave", 0, "a sound of", trains_by_default=False))
    with pytest.raises(ValueError, match="'sound' names the unknown source 'wave'; known: image, points"):
        source_of("sound")


def test_no_two_sources_share_an_extension() -> None:
    assert len(media_extensions()) == len(set(media_extensions()))
    assert "json" not in media_extensions()  # the record's own


def test_nobody_asks_for_a_source_by_name() -> None:
    """A comparison with a source's name outside ``rb/sources`` is a place that a new source would have to change."""
    found = []
    for module, path in our_files().items():
        if module.startswith("rb.sources"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                parts = [node.left, *node.comparators]
                of_source = any(isinstance(part, ast.Attribute) and part.attr == "source" for part in parts)
                if of_source and any(isinstance(part, ast.Constant) and part.value in SOURCES for part in parts):
                    found.append(f"{module}, line {node.lineno}")
    assert not found, found
