"""Shards by URL: a store gives what a disk gives, in loader processes too, also where requests fail; the cache; what URLs and servers may not do."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from rb.core.config import DataConfig, DataSource, FoundationConfig, RunConfig
from rb.core.modality import IMAGE_REGION
from rb.core.run_paths import resolve_paths
from rb.core.text import TextProcessor
from rb.core.urls import SCHEMES, Url, location, public
from rb.data import store
from rb.data.byte_cache import ByteCache
from rb.data.formats import find_manifest
from rb.data.index import ManifestReader, ShardCorruptionError
from rb.data.pipeline import train_loader
from rb.data.shard_files import MOST_AT_ONCE, NEAR, ByteRange, merged
from rb.data.store import Store, StoreError, said
from rb.launching.file_facts import data_facts
from rb.model.weights.build import text_processor
from tests.data.test_data_pipeline import dataset, fingerprint
from tests.support import tiny
from tests.support.raw_data import cli_run
from tests.support.small_data import write_set
from tests.support.stores import BUCKET, S3, FaultyProxy, http_server, leading_server, reading_from

NUM_RECORDS = 9


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "set"
    write_set(folder, IMAGE_REGION, NUM_RECORDS)
    return folder


@pytest.fixture(scope="module")
def url(local: Path, s3: S3) -> str:
    return s3.upload(local, "set")


@pytest.fixture(scope="module")
def text(foundation: FoundationConfig) -> TextProcessor:
    return text_processor(tiny.model_config(foundation))


def everything(place: object, ahead: int = 0) -> list[tuple[object, ...]]:
    """All samples that a reader gives, in order; so many are read ahead each time."""
    reader = ManifestReader(place)  # type: ignore[arg-type]
    found = []
    for number in range(len(reader)):
        if ahead and number % ahead == 0:
            reader.read_ahead(range(number, min(number + ahead, len(reader))))
        one = reader.sample(number)
        found.append((one.id, one.caption, one.record, one.media, one.extension))
    reader.close()
    return found


def epoch(place: object, text: TextProcessor, workers: int) -> list[str]:
    """Every bit of each micro-batch of an epoch."""
    batches = train_loader(dataset({IMAGE_REGION: [DataSource(str(place))]}, text), num_workers=workers)
    return [fingerprint(batch) for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_equals_the_local_one(
    local: Path, url: str, s3: S3, text: TextProcessor, tmp_path: Path, workers: int
) -> None:
    """The parent has opened the set, and so has a thread and connections, before its loader processes are forked."""
    with reading_from(s3.port, tmp_path / "cache"):
        assert epoch(url, text, workers) == epoch(local, text, 0)
        assert ManifestReader(url).digest == ManifestReader(local).digest


def test_failing_requests_and_a_restart_lose_nothing(local: Path, url: str, s3: S3, tmp_path: Path) -> None:
    """A third of all requests fails, without a cache; in the middle the server is away."""
    proxy = FaultyProxy(s3.port, 1 / 3, seed=3)
    with reading_from(proxy.port, tmp_path / "cache", 0.0):
        assert everything(url, ahead=4) == everything(local)
        s3.stop()
        timer = threading.Timer(1.0, s3.start)
        timer.start()
        assert everything(url) == everything(local)
        timer.join()
    proxy.close()
    assert all(proxy.counted[kind] > 0 for kind in ("500", "503", "reset", "short")), proxy.counted
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_the_cache_is_used_and_what_is_torn_in_it_is_not(local: Path, url: str, s3: S3, tmp_path: Path) -> None:
    proxy = FaultyProxy(s3.port, 0.0, seed=0)
    with reading_from(proxy.port, tmp_path / "cache"):
        expected = everything(local)
        assert everything(url, ahead=8) == expected
        once = proxy.counted["none"]
        assert everything(url, ahead=8) == expected
        # Once more: size and bytes of the manifest, sizes of index and shards; no record, no index.
        assert proxy.counted["none"] - once == 3 + len(ManifestReader(local).manifest.shards)
        kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "total"]
        assert len(kept) == NUM_RECORDS + 1
        for number, path in enumerate(kept):  # cut, altered, empty
            content = path.read_bytes()
            path.write_bytes((content[:100], content[:-1] + bytes([content[-1] ^ 1]), b"")[number % 3])
        assert everything(url) == expected
        assert everything(url, ahead=4) == expected
    proxy.close()


def test_an_altered_object_is_never_used(local: Path, s3: S3, tmp_path: Path) -> None:
    where = s3.upload(local, "altered")
    shard = "small-000001.tar"
    content = bytearray((local / shard).read_bytes())
    content[600] ^= 1
    s3.put(f"altered/{shard}", bytes(content))
    with reading_from(s3.port, tmp_path / "cache"):
        reader = ManifestReader(where)
        first = int(reader.index.records["shard"].tolist().index(1))
        for _ in range(2):  # not from the cache either
            with pytest.raises(
                ShardCorruptionError, match=rf"^{where}/{shard}: record .* its bytes were altered; bring"
            ):
                reader.record(first)
            reader._read_ahead(range(NUM_RECORDS))
        assert cli_run("data", "verify", where) == 2


def _fill(folder: Path, first: int) -> None:
    cache = ByteCache(folder, 100_000)
    for number in range(first, first + 60):
        cache.put(str(number), bytes([number % 256]) * 1000)
    os._exit(0)


def test_the_cache_keeps_its_size_whoever_writes(tmp_path: Path) -> None:
    """Four processes put 240 kB into 100 kB; what was used last stays; what a killed process left goes."""
    folder = tmp_path / "cache"
    children = []
    for first in range(0, 240, 60):
        child = os.fork()
        if child == 0:
            _fill(folder, first)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "total")
    assert 80_000 <= size <= 100_000
    cache = ByteCache(folder, 100_000)
    cache.put("kept", b"k" * 1000)
    left = folder / "ab/.some.1-00.tmp"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(bytes(500))
    os.utime(left, (0, 0))
    for number in range(300, 500):
        assert cache.get("kept") == b"k" * 1000
        cache.put(str(number), bytes(1000))
    assert not left.exists()
    assert cache.get("300") is None
    assert cache.get("499") == bytes(1000)
    cache.drop("499")
    assert cache.get("499") is None
    assert not cache.holds("499")
    cache.put("huge", bytes(100_001))
    assert cache.get("huge") is None


def test_a_cache_that_cannot_be_written(local: Path, url: str, s3: S3, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with reading_from(s3.port, tmp_path / "file/cache"):
        assert everything(url, ahead=4) == everything(local)


def test_near_records_are_one_request() -> None:
    places = [ByteRange(0, 0, 100), ByteRange(0, 100 + NEAR, 50), ByteRange(0, 1 << 23, 10), ByteRange(1, 0, 5)]
    assert list(merged(places)) == [places[:2], [places[2]], [places[3]]]
    large = [ByteRange(0, i * MOST_AT_ONCE // 2, MOST_AT_ONCE // 2) for i in range(3)]
    assert list(merged(large)) == [large[:2], large[2:]]
    assert list(merged([])) == []


@pytest.mark.parametrize(
    "typed",
    [
        "https://me:hunter2@host/set",
        "https://hunter2@host/set",
        "s3://key:hunter2@bucket/set",
        "https://host/set/manifest.json?X-Amz-Signature=hunter2",
        "https://host/set#hunter2",
        "file:///etc/x?hunter2",
        "simplecache::s3://hunter2@bucket/set",
    ],
)
def test_a_url_with_a_secret_is_refused_wherever_it_is_written(typed: str, tmp_path: Path, capsys) -> None:
    """In a run file, on a command line, in the meta file of predictions: without quoting it."""
    for use in (location, find_manifest, ManifestReader, DataSource):
        with pytest.raises(ValueError) as refused:
            use(typed)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(SystemExit):
        cli_run("data", "verify", typed)
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert "error: argument manifest: " in said


@pytest.mark.parametrize("typed", ["file:///etc/passwd", "memory://x", "ftp://host/x", "S3://bucket/x", "s3:///x"])
def test_other_schemes_are_refused(typed: str) -> None:
    with pytest.raises(ValueError, match=r"only URLs that begin with|is not a plain URL"):
        location(typed)
    assert not (set(SCHEMES) & {"file", "local", "memory", "ftp"})


def test_names_of_a_manifest_stay_in_its_folder(local: Path, s3: S3, tmp_path: Path) -> None:
    where = s3.upload(local, "names")
    tree = json.loads((local / "manifest.json").read_text())
    with reading_from(s3.port, tmp_path / "cache"):
        for name in ("a?versionId=1", "%2e%2e%2fa.tar", "..", "a#b", "*.tar", "a\\b", "a/b.tar"):
            tree["shards"][0]["file"] = name
            s3.put("names/manifest.json", json.dumps(tree).encode())
            with pytest.raises(ValueError, match=r"must not leave the manifest's folder|cannot be the name of a file"):
                ManifestReader(where)


def test_http(local: Path, tmp_path: Path) -> None:
    """With byte ranges, also where the server leads to another; never to a file."""
    with (
        reading_from(0, tmp_path / "cache"),
        http_server(local.parent) as server,
        leading_server(server) as moved,
        leading_server("file://" + str(local.parent)) as to_files,
    ):
        assert everything(f"{server}/set", ahead=4) == everything(local)
        assert everything(f"{moved}/set/manifest.json") == everything(local)
        with pytest.raises(StoreError, match="the server leads from http to file"):
            ManifestReader(f"{to_files}/set")
        with pytest.raises(StoreError, match=r"nothing.json: is not there"):
            ManifestReader(f"{server}/nothing.json")


def test_commands_and_checks_take_urls(local: Path, url: str, s3: S3, tmp_path: Path, capsys) -> None:
    with reading_from(s3.port, tmp_path / "cache"):
        assert cli_run("data", "verify", url, "--decode") == 0
        assert f"{url}/manifest.json: small, image_region, train" in capsys.readouterr().out
        assert cli_run("data", "stats", url, str(local)) == 0
        assert cli_run("data", "diff", url, f"{url}/manifest.json") == 0
        assert cli_run("data", "show", url, "--out", str(tmp_path / "page.html")) == 0
        assert cli_run("data", "exclude", url, "--against", url, "--out", str(tmp_path / "out")) != 0
        facts = data_facts([url, str(local), f"{url}/no.json"], full=True)
        assert facts[url] == facts[str(local)]
        assert "is not there" in facts[f"{url}/no.json"]["problem"]
        config = RunConfig(data=DataConfig(train={IMAGE_REGION: (DataSource(url),)}), output_dir="x")
        assert resolve_paths(config).data.train[IMAGE_REGION][0].manifest == url


def test_errors_of_clients_are_told_without_secrets() -> None:
    class ClientError(Exception):
        pass

    told = said(ClientError("403 for https://me:pw@host/a?X-Amz-Signature=abc\n  (GET 'https://h/x?token=1')"))
    assert told == "403 for https://***@host/a (GET 'https://h/x')"
    assert public("s3://bucket/a b") == "s3://bucket/a b"
    assert (Url("s3://bucket/set/") / "a b.tar").text == "s3://bucket/set/a b.tar"
    assert Url("https://host/set/x.json").parent == Url("https://host/set")


def test_a_server_that_always_fails_is_an_end(s3: S3, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 0.5)
    proxy = FaultyProxy(s3.port, 1.0, seed=1)
    with reading_from(proxy.port, tmp_path / "cache"), pytest.raises(StoreError, match=r"in \d+ tries over"):
        Store(Url(f"s3://{BUCKET}/set")).size("manifest.json")
    assert proxy.counted["none"] == 0
    proxy.close()
