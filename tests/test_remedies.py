"""Everything that the program advises: every command and option parses, and every remedy is run by a test or listed here with the reason."""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rb.cli import COMMANDS
from rb.core.modality import IMAGE
from rb.core.stand_ins import stand_in
from rb.data.index import ManifestReader
from rb.data.prepare import coco, refcoco
from rb.data.shards import adopt
from tests.data.prepare.test_coco import coco_raw, entry
from tests.data.prepare.test_refcoco import ref, refcoco_raw
from tests.data.test_exif_orientation import photo
from tests.support.printed import ROOT, messages, remedies
from tests.support.raw_data import cli_run, convert, found, jpeg
from tests.support.remedies import COVERED, the_message
from tests.support.small_data import write_set

NAMES = "|".join(sorted((command.name for command in COMMANDS), key=len, reverse=True))
# A command with at least one argument: options, values that are filled in ({...}), names in capitals (DIR).
WITH_ARGUMENTS = re.compile(rf"\brb ({NAMES})((?: (?:--[a-z-]+|[^ `]*\{{[^}}]*\}}[^ `,;]*|[A-Z][A-Z_]+\b))+)")
OTHER_PROGRAMS = {"docker", "tar", "mlflow"}


@cache
def parser(name: str) -> argparse.ArgumentParser:
    return next(command for command in COMMANDS if command.name == name).parser()


@cache
def all_options() -> frozenset[str]:
    return frozenset(option for command in COMMANDS for option in parser(command.name)._option_string_actions)


def filled(known: argparse.ArgumentParser, arguments: str) -> list[str]:
    """``arguments`` with a value in the place of ``{}``, and a real choice behind an option that has some."""
    words = arguments.split()
    for k in range(1, len(words)):
        option = known._option_string_actions.get(words[k - 1])
        if option is not None and option.choices and (words[k].isupper() or words[k] == "{}"):
            words[k] = str(next(iter(option.choices)))
    return [word.replace("{}", "1") for word in words]


def test_every_printed_command_can_be_typed(capsys) -> None:
    printed = [(place, *match) for place, text, _ in messages() for match in WITH_ARGUMENTS.findall(text)]
    assert len(printed) > 8, "the pattern finds what the program prints"
    wrong = []
    for place, name, arguments in printed:
        try:
            parser(name).parse_intermixed_args(filled(parser(name), arguments))
        except SystemExit as error:
            if error.code:
                wrong.append(f"{place}: rb {name}{arguments}: {capsys.readouterr().err.splitlines()[-1]}")
    assert wrong == []


def test_every_printed_option_exists() -> None:
    wrong = []
    for place, text, _ in messages():
        if " " not in text or OTHER_PROGRAMS & set(re.findall(r"[a-z]+", text)):
            continue
        wrong += [
            f"{place}: {name}" for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) if name not in all_options()
        ]
    assert [line for line in wrong if "gpu_check" not in line] == []  # it has a parser that no command shows


# Rooms whose messages are not all tested yet.
TO_DO = """rb/data/predictions.py rb/ablate rb/api rb/bench rb/checkpoints rb/cli.py rb/data/prepare rb/evaluation rb/exporting rb/gpu_check rb/inference rb/model
rb/pages rb/tracking rb/train rb/toy launch""".split()  # noqa: SIM905
# Remedies that cannot be run where tests run, and why.
NOT_RUN = {
    "was built without CUDA: install a build with it": "installs a torch with CUDA from an index",
    "torch sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES": "needs a GPU; `or use the device cpu` of the same line is run",
}
# Texts that read as if they told the user to do something, and do not.
STATEMENTS = ("say only errors", "say says saying said")


def test_every_remedy_is_run_or_listed() -> None:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if "tests.support.remedies import" in path.read_text(encoding="utf-8"):
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    known = {the_message(piece).text for piece in (*COVERED, *NOT_RUN, *STATEMENTS)}  # also: none is out of date
    forgotten = [
        f"{m.place}: {m.text}" for m in remedies() if m.text not in known and not m.place.startswith(tuple(TO_DO))
    ]
    assert not forgotten, (
        "these messages tell the user to do something, but no test does it: "
        + "\n".join(["", *forgotten, ""])
        + "Add @remedy(A PIECE OF THE MESSAGE) to a test that causes the fault and follows the message; the first lines of "
        "tests/support/remedies.py show one, and each room's are in its test_remedies.py. If it cannot be run here, add it to NOT_RUN "
        "above with the reason."
    )


def ran(command: str) -> None:
    """The printed command, in this process where it is ours."""
    words = shlex.split(command)
    if words[0] == "rb":
        assert cli_run(*words[1:]) == 0
    else:
        words[0] = {"python": sys.executable}.get(words[0], words[0])
        subprocess.run(words, check=True)


def index_lost(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    write_set(folder / "set", IMAGE, 4)
    before = (folder / "set/manifest.json").read_bytes()
    (folder / "set/index.bin").unlink()

    def help_(commands: list[str]) -> None:
        ran(commands[0])
        assert (folder / "set/manifest.json").read_bytes() == before, "training goes on only on equal digests"

    return lambda: ManifestReader(folder / "set"), help_


def index_altered(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    result = index_lost(folder)
    (folder / "set/index.bin").write_bytes(b"RBINDEX1")
    return result


def manifest_there(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    write_set(folder / "set", IMAGE, 4)
    again = {"overwrite": False}
    return lambda: adopt(folder / "set", IMAGE, **again), lambda _: again.update(overwrite=True)


def compressed_tar(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    write_set(folder / "set", IMAGE, 2)
    (folder / "set/manifest.json").unlink()
    tar = folder / "set/small-000000.tar"
    packed = gzip.compress(tar.read_bytes())
    tar.write_bytes(packed)
    return lambda: adopt(folder / "set", IMAGE), lambda _: tar.write_bytes(gzip.decompress(packed)) and None


def numpy_in_refs(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    """As pandas users write them: numbers of numpy, an array, a set."""
    rows = [ref(np.int64(1), np.int64(11), np.int32(1), box=np.arange(3), seen={1})]
    raw = refcoco_raw(folder / "it's raw", pickle.dumps(rows, protocol=2), {11: (1, [1, 2, 9, 9])})
    return lambda: convert(refcoco, raw, folder / "out", "train"), lambda commands: ran(commands[0])


def half_json_beside_the_pickle(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    raw = refcoco_raw(folder / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])})
    half = raw / "refs(google).json"
    half.write_text(json.dumps([ref(1, 11, 1)])[:50])
    return lambda: convert(refcoco, raw, folder / "out", "train"), lambda _: half.unlink()


def sideways_photo(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    raw = coco_raw(folder / "raw", [entry(1)], {1: photo(6)})
    said: dict[str, str] = {}

    def help_(commands: list[str]) -> None:
        for command in commands:
            option, value = command.split()
            assert option == "--exif"
            convert(coco, raw, folder / value, "train", exif=value)
            said["exif"] = value

    return lambda: convert(coco, raw, folder / "out", "train", **said), help_


def out_not_empty(folder: Path) -> tuple[Callable[[], object], Callable[[list[str]], None]]:
    raw = coco_raw(folder / "raw", [entry(1)])
    (folder / "out").mkdir()
    (folder / "out/mine.txt").write_text("")
    return lambda: convert(coco, raw, folder / "out", "train"), lambda _: shutil.rmtree(folder / "out")


CASES = {
    index_lost: "is missing; make it again",
    index_altered: "make it again",
    manifest_there: "exists already; say --overwrite",
    compressed_tar: "compressed tars must be unpacked first",
    numpy_in_refs: "refused, it asks for numpy",
    half_json_beside_the_pickle: r"refs\(google\)\.json: not valid JSON .*; remove it, and refs\(google\)\.p is read again",
    sideways_photo: "exif_orientation: 1",
    out_not_empty: "is not empty; choose another folder, or remove it first",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_an_error_advises_helps(tmp_path: Path, case) -> None:
    fails, help_ = case(tmp_path)
    with pytest.raises(ValueError, match=CASES[case]) as caught:
        fails()
    help_(re.findall("`([^`]*)`", str(caught.value)))
    fails()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


@pytest.mark.parametrize(("data", "says"), [(POINTER, "git-lfs pointer.*run `git lfs pull`"), (PAGE, "is a web page")])
@pytest.mark.parametrize("file", ["refs(google).p", "instances.json", "refs(google).json"])
def test_what_a_failed_download_left_is_named(tmp_path: Path, file: str, data: bytes, says: str) -> None:
    raw = refcoco_raw(tmp_path / "raw", [ref(1, 11, 1)], {11: (1, [1, 2, 9, 9])})
    (raw / file).write_bytes(data)
    with pytest.raises(ValueError, match=f"{re.escape(file)}: .*{says}") as caught:
        convert(refcoco, raw, tmp_path / "out", "train")
    assert "trust" not in str(caught.value)
    assert "removed" not in str(caught.value)


def test_what_a_failed_download_left_of_media_is_named(tmp_path: Path) -> None:
    raw = coco_raw(tmp_path / "raw", [entry(1), entry(2), entry(3)], {1: POINTER, 2: PAGE, 3: jpeg()})
    convert(coco, raw, tmp_path / "out", "train")
    details = (tmp_path / "out/rejected.jsonl").read_text()
    assert "git-lfs pointer" in details
    assert "web page" in details
    assert list(found(tmp_path / "out")) == ["coco/3"]
    assert stand_in(b"<svg>") is None
    assert stand_in(b"") is None
