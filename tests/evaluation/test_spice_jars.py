"""``rb metrics install``: the jars come from a folder or a real server, whole and as expected, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.evaluation import spice_jars as file
from rb.evaluation.spice_jars import (
    CODE,
    JARS_VARIABLE,
    MODELS,
    Jar,
    SpiceMissingError,
    install,
    jar_folder,
    spice_jars,
)
from rb.toy.demo import Demo
from tests.support.remedies import Said, covers, helps

# Two small files of the jars' names: what is tested is how they are fetched.
CONTENT = {name: name.encode() * 5000 for jar in (CODE, MODELS) for name in jar.sha256}
SMALL = tuple(
    Jar(jar.what, {name: hashlib.sha256(CONTENT[name]).hexdigest() for name in jar.sha256}) for jar in (CODE, MODELS)
)
NAMES = list(CONTENT)
REAL = os.environ.get(JARS_VARIABLE, "")  # before ``home`` takes it away


class Server(SimpleHTTPRequestHandler):
    """Serves a folder. A file that has a ``.short`` beside it breaks off in the middle, as a lost connection does; with ``.500`` it fails."""

    def do_GET(self) -> None:
        if Path(f"{self.translate_path(self.path)}.500").exists():
            self.send_error(500)
        else:
            super().do_GET()

    def copyfile(self, source, outputfile) -> None:
        if Path(f"{source.name}.short").exists():
            outputfile.write(source.read(1000))
        else:
            super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder with the small jars, and the address of a server of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder; no proxy between us and our server."""
    monkeypatch.delenv(JARS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "data" / "regionblip" / "spice"


def test_from_a_server_to_the_place_where_scoring_looks(
    served: tuple[Path, str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    with pytest.raises(SpiceMissingError, match="`rb metrics install`"):
        spice_jars()
    lines = install(address, SMALL)
    assert (
        [line.split(": ")[0] for line in lines]
        == [str(home / name) for name in NAMES[:2]]
        == list(map(str, spice_jars()))
    )
    assert {path.name: path.read_bytes() for path in home.iterdir()} == {name: CONTENT[name] for name in NAMES[:2]}
    # Again: nothing is fetched; an altered one is.
    (folder / NAMES[0]).unlink()
    (home / NAMES[1]).write_bytes(b"altered")
    first, second = install(address, SMALL)
    assert first.endswith("is there already")
    assert second.endswith("MB")
    # The variable's folder comes first, also as the target; the models' smaller file serves where the whole one is not.
    monkeypatch.setenv(JARS_VARIABLE, str(tmp_path / "mine"))
    assert jar_folder() == tmp_path / "mine"
    (folder / NAMES[0]).write_bytes(CONTENT[NAMES[0]])
    (folder / NAMES[1]).unlink()
    install(address + "/", SMALL)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {NAMES[0], NAMES[2]}
    assert [path.name for path in spice_jars()] == [NAMES[0], NAMES[2]]


@pytest.mark.parametrize("kind", ["server", "folder"])
def test_what_is_altered_cut_short_or_absent_is_refused_and_not_kept(
    served: tuple[Path, str], home: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    source = address if kind == "server" else str(folder)
    cases = {
        "altered": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
        "cut short": lambda path: (
            path.with_name(f"{path.name}.short").touch()
            if kind == "server"
            else path.write_bytes(path.read_bytes()[:1000])
        ),
        "has no": lambda path: path.unlink(),
    }
    for words, spoil in cases.items():
        (folder / NAMES[0]).write_bytes(CONTENT[NAMES[0]])
        spoil(folder / NAMES[0])
        with pytest.raises(ValueError, match=rf"^{source}.*{words}.*rb metrics install --from FOLDER"):
            install(source, SMALL)
        assert list(home.iterdir()) == []
    monkeypatch.setattr(file, "MAX_BYTES", 2000)
    for path in folder.iterdir():
        path.unlink() if path.suffix == ".short" else None
    (folder / NAMES[0]).write_bytes(CONTENT[NAMES[0]])
    with pytest.raises(ValueError, match="more than 2,000 bytes"):
        install(source, SMALL)
    assert list(home.iterdir()) == []


def test_sources_that_are_none_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, words in (
        (tmp_path / "absent", "is no folder and no address"),
        ("http://127.0.0.1:9", "cannot be reached"),
    ):
        assert rb(["metrics", "install", "--from", str(source)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert "rb metrics install --from FOLDER" in said
        assert said.count("\n") == 1


def test_missing_spice_jars_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(JARS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(
        SpiceMissingError, match=r"data/regionblip/spice has no .*0\.jar and no .*; `rb metrics install`"
    ):
        spice_jars()
    monkeypatch.setenv(JARS_VARIABLE, str(tmp_path))
    (tmp_path / "stanford-corenlp-3.6.0.jar").touch()
    with pytest.raises(SpiceMissingError, match=rf"{JARS_VARIABLE}=.* has no stanford-corenlp-3.6.0-models\*.jar; `rb"):
        spice_jars()


@pytest.mark.skipif(not REAL, reason=f"{JARS_VARIABLE} is not set: the real jars are not at hand")
def test_the_real_jars_have_the_pinned_checksums(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rb(["metrics", "install", "--from", REAL]) == 0
    assert capsys.readouterr().out.count(" MB\n") == 2
    assert [path.parent for path in spice_jars()] == [home, home]


def test_the_demo_says_first_how_to_get_spice(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Demo, "prepare", lambda _: print("the first step"))
    for name in ("train", "evaluate"):
        monkeypatch.setattr(Demo, name, lambda _: None)
    Demo(tmp_path / "demo", "opt", None, "demo", ()).run_all()
    said = capsys.readouterr().out.split("the first step")[0]
    assert "the jars of SPICE: " in said
    assert "`rb metrics install` fetches" in said
    home.mkdir(parents=True)
    for name in NAMES[:2]:
        (home / name).touch()
    Demo(tmp_path / "demo", "opt", None, "demo", ()).run_all()
    assert "SPICE" not in capsys.readouterr().out


# Message -> (what is wrong with the source, the source that was asked for).
SOURCES = {
    "is no folder and no address (http://, https://); {}": (lambda path: None, lambda address: "lost"),
    "cannot be reached ({}); {}": (lambda path: None, lambda address: "http://127.0.0.1:9"),
    "answered {} {}; {}": (lambda path: path.with_name(f"{path.name}.500").touch(), str),
    "was cut short ({}); try again, or {}": (lambda path: path.with_name(f"{path.name}.short").touch(), str),
    "cut short or altered; nothing was kept; {}": (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), str),
    "{}: has no {}; {}": (lambda path: path.unlink(), str),
}


@pytest.mark.parametrize(
    "says", covers(SOURCES, also=["download it elsewhere ({}) and give its folder: rb metrics install --from FOLDER"])
)
def test_jars_from_a_folder_where_a_source_fails(served: tuple[Path, str], tmp_path: Path, says: str) -> None:
    """The command's own checksums are of the real jars (385 MB); here its function is given those of small ones."""
    (folder, address), (spoil, choose) = served, SOURCES[says]
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    spoil(folder / NAMES[0])
    source = [choose(address)]

    def follow(said: Said) -> None:
        assert said.found("rb metrics install (--from) FOLDER")
        source[0] = str(elsewhere)

    helps(says, lambda: install(source[0], SMALL), follow)


@pytest.mark.parametrize("command", [0, 1])
@pytest.mark.parametrize("says", covers(["{} has no {}; {}"], also=["`rb metrics install` fetches Stanford CoreNLP"]))
def test_jars_that_are_not_there(served: tuple[Path, str], says: str, command: int) -> None:
    folder, address = served

    def follow(said: Said) -> None:
        assert said.commands[command] == "rb metrics install" + " --from FOLDER" * command
        install(str(folder) if command else address, SMALL)

    helps(says, spice_jars, follow)
