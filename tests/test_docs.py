"""README, CONTRIBUTING and docs/: every link and file name in them exists, and they build as a site."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.support import markdown

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in markdown.markdown_files(ROOT)}
# A change log tells of commands and files as they were.
LIVE = [name for name in PAGES if name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str) -> None:
    wrong = []
    for link in markdown.links(PAGES[page]):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        if not path.exists():
            wrong.append(f"{link}: no such file")
        elif anchor and anchor not in markdown.anchors(path.read_text(encoding="utf-8")):
            wrong.append(f"{link}: no such heading")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", LIVE)
def test_named_files(page: str) -> None:
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    wrong = []
    for pattern, name in markdown.named_paths(PAGES[page], tops):
        for path in markdown.expand(pattern):
            found = list(ROOT.glob(path)) if "*" in path else [ROOT / path] * (ROOT / path).exists()
            if not found:
                wrong.append(f"{path}: no such file or folder")
            elif name and not any(name.split(".")[-1] in file.read_text(encoding="utf-8") for file in found):
                wrong.append(f"{path}: {name} is not in it")
    assert not wrong, "\n".join(wrong)


def test_builds_as_a_site(tmp_path: Path) -> None:
    build = pytest.importorskip("mkdocs.commands.build", reason="the docs site needs the extra [docs]")
    from mkdocs.config import load_config

    # In strict mode a warning (a page outside the menu, a link or anchor that leads nowhere) ends the build.
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    build.build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))
    made = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {Path(name).stem for name in PAGES if name.startswith("docs/")} <= made
