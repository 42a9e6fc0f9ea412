"""What the messages about URLs and stores advise helps."""

from __future__ import annotations

import base64
import shutil
import stat
import sys
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from fsspec.registry import _registry

from rb.core.modality import IMAGE
from rb.core.urls import Url, location
from rb.data import store
from rb.data.byte_cache import LIMIT, shard_cache
from rb.data.index import ManifestReader
from rb.data.shards import verify_shards
from rb.data.store import Store
from tests.support.remedies import Said, covers, helps, remedy
from tests.support.small_data import write_set
from tests.support.stores import BUCKET, KEY, S3, SECRET, http_server, reading_from, served


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", IMAGE, 4)
    return tmp_path / "set"


@pytest.fixture
def uploaded(small: Path, s3: S3, tmp_path: Path, monkeypatch):
    """URL of a set whose folder is ``small``."""
    monkeypatch.setattr(store, "PATIENCE_S", 1.0)
    with reading_from(s3.port, tmp_path / "cache"):
        yield s3.upload(small, tmp_path.name)


# Message -> what is typed, and what the advice makes of it.
TYPED = {
    "only URLs that begin with {} are read": ("ftp://host/set", "https://host/set"),
    "a URL with a login, a query or a fragment is refused": (
        "https://u:p@host/set?X-Amz-Signature=1",
        "https://host/set",
    ),
    "is not a plain URL; write": ("s3://bucket/../other", "s3://bucket/other"),
}


@pytest.mark.parametrize("says", covers(TYPED))
def test_urls(says: str) -> None:
    typed, right = TYPED[says]
    given = [typed]
    helps(says, lambda: location(given[0]), lambda said: given.__setitem__(0, right))


@remedy("cannot be the name of a file in it; rename the file")
def test_names_that_lead_elsewhere():
    name = ["a?versionId=1.tar"]
    return lambda: Url("s3://bucket/set") / name[0], lambda said: name.__setitem__(0, "a.tar")


@remedy("must be a number of gigabytes, 0 for no cache; set {}={}")
def test_size_of_the_cache(monkeypatch):
    monkeypatch.setenv(LIMIT, "much")
    return shard_cache, lambda said: monkeypatch.setenv(*said.found(r"set (\S+)$").split("="))


@remedy("could not be read in {} tries over {} s")
def test_a_server_that_is_away(uploaded: str, s3: S3):
    s3.stop()
    return lambda: ManifestReader(uploaded), lambda said: s3.start()


@remedy("is not there; correct the URL, or upload the file again")
def test_a_manifest_that_is_not_there(uploaded: str, small: Path, s3: S3):
    name = uploaded.removeprefix(f"s3://{BUCKET}/") + "/manifest.json"
    s3.delete(name)
    return lambda: ManifestReader(uploaded), lambda said: s3.put(name, (small / "manifest.json").read_bytes())


@remedy("needs the package {}; pip install 'regionblip[{}]'")
def test_a_package_that_is_missing(uploaded: str, monkeypatch):
    """The package is hidden and brought back: nothing is installed in tests."""
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)

    def follow(said: Said) -> None:
        assert said.found(r"pip install 'regionblip\[(\w+)\]'") == "s3"
        monkeypatch.delitem(sys.modules, "s3fs")

    return lambda: ManifestReader(uploaded), follow


@remedy("the store refuses to read it ({}); set {}")
def test_no_login(uploaded: str, monkeypatch, tmp_path: Path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # nor in its files

    def follow(said: Said) -> None:
        names = said.found(r"set (\w+ and \w+)").split(" and ")
        for name, value in zip(names, (KEY, SECRET), strict=True):
            monkeypatch.setenv(name, value)
        store._systems.clear()

    return lambda: ManifestReader(uploaded), follow


class _Asks(BaseHTTPRequestHandler):
    """A server that wants a login, and takes nothing behind another path than its own."""

    def log_message(self, *_args: object) -> None:
        pass

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Basic {base64.b64encode(b'me:secret').decode()}"
        status = 401 if not known else 206 if self.path == "/set/file" else 400
        self.send_response(status)
        self.send_header("Content-Length", "4")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"good")

    do_HEAD = do_GET  # noqa: N815 (http.server's name)


def test_a_login_for_http(tmp_path: Path, monkeypatch) -> None:
    """By the line in ~/.netrc that the message names; then a wrong path is corrected."""
    netrc = tmp_path / "netrc"
    netrc.write_text("")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setattr(store, "_systems", {})
    with served(_Asks) as server:
        folder = [f"http://127.0.0.1:{server.server_address[1]}/wrong"]

        def follow(said: Said) -> None:
            assert "~/.netrc" in said
            netrc.write_text("machine 127.0.0.1 login me password secret\n")
            netrc.chmod(stat.S_IRUSR)
            store._systems.clear()
            folder[0] = folder[0].replace("wrong", "set")

        read = lambda: Store(Url(folder[0])).read("file", 0, 4)  # noqa: E731
        helps("the store refuses to read it ({}); set {}", read, follow)


@remedy("correct the URL, or the settings of the store's client")
def test_a_request_that_is_refused(tmp_path: Path, monkeypatch, request):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(store, "_systems", {})
    stack = ExitStack()
    request.addfinalizer(stack.close)
    port = stack.enter_context(served(_Asks)).server_address[1]
    path = ["wrong"]
    read = lambda: Store(Url(f"http://127.0.0.1:{port}/{path[0]}")).read("file", 0, 4)  # noqa: E731
    return read, lambda said: path.__setitem__(0, "set")


@pytest.mark.parametrize("way", ["server", "disk"])
@pytest.mark.parametrize("says", covers(["the server does not send byte ranges"]))
def test_a_server_without_ranges(small: Path, tmp_path: Path, monkeypatch, says: str, way: str) -> None:
    monkeypatch.setattr(store, "_systems", {})
    with (
        http_server(tmp_path, ranges=False) as poor,
        http_server(tmp_path) as good,
        reading_from(0, tmp_path / "cache"),
    ):
        place = [f"{poor}/set"]

        def follow(said: Said) -> None:
            if way == "disk":
                shutil.copytree(small, tmp_path / "copy")
            place[0] = f"{good}/set" if way == "server" else str(tmp_path / "copy")

        helps(says, lambda: ManifestReader(place[0]).sample(0), follow)


CUT = covers(["the file was cut or replaced; put the right one there again"])[0]


def test_what_was_cut_is_uploaded_again(uploaded: str, small: Path, s3: S3) -> None:
    """A shard that shrinks while it is read, and one that is found so; both end with what to do, and go on after it."""
    name = "small-000000.tar"
    key = f"{uploaded.removeprefix(f's3://{BUCKET}/')}/{name}"
    whole = (small / name).read_bytes()
    reader = ManifestReader(uploaded)
    s3.put(key, whole[:700])
    again = lambda said: s3.put(key, whole)  # noqa: E731
    helps(CUT, lambda: reader.sample(0), again)
    s3.put(key, whole[:700])
    with pytest.raises(ValueError, match=r"700 bytes, but .* cut or replaced; bring the right file back"):
        ManifestReader(uploaded)
    with pytest.raises(ValueError, match=r"small-000000.tar \(altered\)"):
        verify_shards(location(uploaded))
    again(Said())
    assert verify_shards(location(uploaded)) == ManifestReader(uploaded).manifest


def test_an_index_that_was_altered(uploaded: str, small: Path, s3: S3) -> None:
    key = f"{uploaded.removeprefix(f's3://{BUCKET}/')}/index.bin"
    whole = (small / "index.bin").read_bytes()
    s3.put(key, whole[:-1] + b"?")
    helps(
        "altered since {} was written (sha256 differs)",
        lambda: ManifestReader(uploaded),
        lambda said: s3.put(key, whole),
    )
