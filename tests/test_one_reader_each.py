"""Every kind of untrusted file has one reader: the source is scanned for calls that would go past it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What opens a kind of file -> the one file that may. Writing (json.dumps, save_file, csv.writer) is free.
READERS = {
    "json.load": None,
    "json.loads": "rb/core/strict_json.py",
    "json.JSONDecoder": "rb/core/strict_json.py",  # json_stream.py has it from there
    "json.decoder.JSONDecoder": None,
    "yaml.load": None,
    "yaml.safe_load": None,
    "yaml.safe_load_all": None,
    "yaml.SafeLoader": "rb/core/run_yaml.py",
    "safetensors.safe_open": "rb/core/tensor_files.py",
    "safetensors.torch.load_file": None,
    "safetensors.torch.load": "rb/core/tensor_files.py",
    "safetensors.numpy.load_file": None,
    "torch.load": "rb/core/torch_files.py",
    "tarfile.open": "rb/data/tars.py",
    # npz; a look at torch's zip; clouds as they are shipped
    "zipfile.ZipFile": ("rb/sources/cloud_arrays.py", "rb/core/torch_files.py", "rb/data/prepare/cloud_zips.py"),
    "numpy.load": None,
    "numpy.loadtxt": "rb/sources/cloud_files.py",  # .xyz
    "numpy.genfromtxt": None,
    "numpy.fromfile": None,
    "numpy.memmap": "rb/data/shard_files.py",
    "numpy.lib.format.read_array": None,
    "numpy.lib.format.read_array_header_1_0": "rb/core/npy_files.py",
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "pickle._Unpickler": "rb/data/prepare/safe_pickle.py",
    "pickletools.genops": ("rb/core/torch_files.py", "rb/data/prepare/array_pickle.py"),
    "csv.reader": ("rb/data/prepare/cap3d.py", "rb/data/prepare/tables.py"),  # Cap3D's; one's own tables
    "pyarrow.parquet.ParquetFile": "rb/data/prepare/parquet_files.py",
    "pyarrow.parquet.read_table": None,
    "csv.DictReader": None,
    "plyfile.PlyData.read": "rb/sources/cloud_files.py",
    "pypcd4.PointCloud.from_fileobj": "rb/sources/cloud_files.py",
    "defusedxml.ElementTree.fromstring": "rb/data/prepare/xml_files.py",
    "xml.etree.ElementTree.fromstring": None,
    "xml.etree.ElementTree.parse": None,
    "PIL.Image.open": "rb/sources/pixels.py",
    "simplejpeg.decode_jpeg": "rb/sources/pixels.py",
    "gzip.open": None,
    "bz2.open": None,
    "lzma.open": None,
    "deepspeed.launcher.runner.fetch_hostfile": None,  # rb/launching/hostfile.py reads hostfiles
    "shelve.open": None,
    "marshal.loads": None,
    "builtins.eval": None,
    "builtins.exec": None,
    "shutil.unpack_archive": None,
}


def names_used(source: str) -> list[tuple[str, int]]:
    """(full name, line) of every name and attribute of an imported module that a source uses, whatever it is called there."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, *rest = ast.unparse(node).split(".")
            found.append((".".join([known.get(first, f"builtins.{first}"), *rest]), node.lineno))
    return found


def strays(source: str, name: str) -> list[str]:
    """The uses of a reader's call in a file that is not that reader."""
    found = []
    for used, line in names_used(source):
        if used in READERS and name not in (READERS[used] or ()):
            found.append(f"{name}:{line}: {used}")
    return found


def test_no_file_is_read_past_its_reader() -> None:
    # The toy foundation's own training (rb/toy/pretraining) and the tests read what they wrote themselves, by the same readers.
    files = [path for room in ("rb", "eval") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 150
    assert [s for path in files for s in strays(path.read_text(), path.relative_to(ROOT).as_posix())] == []


def test_every_reader_is_still_where_the_table_says() -> None:
    for call, places in READERS.items():
        for place in [places] if isinstance(places, str) else places or ():
            assert call in {used for used, _ in names_used((ROOT / place).read_text())}, (call, place)


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.loads(x)",
        "from json import loads as parse\nparse(x)",
        "import numpy as np\nnp.load(x)",
        "from yaml import safe_load\nsafe_load(x)",
        "import safetensors.torch\nsafetensors.torch.load_file(x)",
        "from PIL import Image\nImage.open(x)",
        "eval(x)",
        "import torch\nread = torch.load",
    ],
)
def test_the_scan_sees_through_other_names(source: str) -> None:
    assert strays(source, "rb/somewhere.py")


def test_torch_reads_weights_only() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "rb/core/torch_files.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) == 1
    assert {k.arg: ast.unparse(k.value) for k in calls[0].keywords}["weights_only"] == "True"
