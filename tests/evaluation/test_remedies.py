"""What the messages of scoring, comparing and tables advise helps. Those about SPICE's jars: test_spice_jars.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rb.data.predictions import predictions_meta_path
from rb.evaluation.comparing import compare
from rb.evaluation.java import find_java
from rb.evaluation.scoring import score_file
from tests.evaluation.test_coco_results import write as written
from tests.evaluation.test_compare import rows, write
from tests.support.remedies import Said, covers, helps, remedy, typed

FAST = ["--no-java", "--no-mlflow", "--metrics", "CIDEr"]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{name}.jsonl", rows()) for name in ("a", "b")]


def words(command: str, *more: object) -> list[object]:
    return [*command.split(), *more]


# Message -> (words before, words that the message makes of them); A and B are prediction files, RUN a folder that holds both.
COMMANDS: dict[str, tuple[list[str], Callable[[Said], list[str]]]] = {
    "--out names one file, but several files are to be scored; leave it out": (
        ["score", "A", "B", "--out", "OUT", *FAST],
        lambda _: ["score", "A", "B", *FAST],
    ),
    "--metrics {}: unknown; choose from {}": (
        ["score", "A", "--no-java", "--no-mlflow", "--metrics", "Cider"],
        lambda said: ["score", "A", "--no-java", "--no-mlflow", "--metrics", said.found("choose from .*(CIDEr)")],
    ),
    "give either files that rb predict wrote, or --coco-results with --annotations, or --lmms-eval": (
        ["score", *FAST],
        lambda _: ["score", "A", *FAST],
    ),
    "--coco-results FILE and --annotations FILE belong together; give both": (
        ["score", "--coco-results", "RESULTS", *FAST],
        lambda said: ["score", "--coco-results", "RESULTS", said.found("and (--annotations) FILE"), "TRUTH", *FAST],
    ),
    "give either RUN_DIR, a run folder with scores, or --paper": (
        ["table"],
        lambda said: ["table", said.found("or (--paper)")],
    ),
    "a comparison needs at least two prediction files or run folders": (
        ["compare", "A", "--no-java"],
        lambda _: ["compare", "A", "B", "--no-java"],
    ),
    "is not there; give predictions files or run folders": (
        ["compare", "A", "LOST", "--no-java"],
        lambda _: ["compare", "A", "B", "--no-java"],
    ),
    "is a file beside folders; give files only or run folders only": (
        ["compare", "RUN", "A", "--no-java"],
        lambda _: ["compare", "RUN", "RUN", "--no-java"],
    ),
    "{}: unknown; choose from {}": (
        ["compare", "A", "C", "--no-java", "--allow", "decodings"],
        lambda said: ["compare", "A", "C", "--no-java", "--allow", said.found("choose from .*(decoding)")],
    ),
}


@pytest.mark.parametrize(
    "says", covers(["--allow {}: unknown; choose from {}" if k.startswith("{}") else k for k in COMMANDS])
)
def test_a_command_is_corrected_as_it_is_said(files: list[Path], tmp_path: Path, says: str) -> None:
    before, advised = COMMANDS["{}: unknown; choose from {}" if says.startswith("--allow") else says]
    run = tmp_path / "run"
    (run / "predictions").mkdir(parents=True)
    for file in (*files, *(predictions_meta_path(file) for file in files)):
        shutil.copy(file, run / "predictions")
    other = write(tmp_path / "c.jsonl", rows(), decoding={"num_beams": 1})
    places = {
        "A": files[0],
        "B": files[1],
        "C": other,
        "RUN": run,
        "LOST": tmp_path / "lost.jsonl",
        "OUT": tmp_path / "o.json",
    }
    results, truth, *_ = written(tmp_path, [1, 2])
    places |= {"RESULTS": results, "TRUTH": truth}
    given = [before]
    call = lambda: typed(*(places.get(word, word) for word in given[0]))  # noqa: E731
    helps(says, call, lambda said: given.append(given.pop() and advised(said)))


# Message -> (what is wrong with a file, what follows the message).
FILES = {
    "no references to score against; predict on data that has captions": (
        lambda path: write(path, [replace(row, references=[]) for row in rows()]),
        lambda path, _: write(path, rows()),
    ),
    "{}: no predictions in it; predict again": (lambda path: write(path, []), lambda path, _: write(path, rows())),
    "it must be null or hold run, name, step": (
        lambda path: write(path, rows(), checkpoint="step 3"),
        lambda path, _: write(path, rows(), checkpoint=None),
    ),
}


@pytest.mark.parametrize("says", covers(FILES))
def test_a_file_is_mended_as_it_is_said(tmp_path: Path, says: str) -> None:
    path, (spoil, mend) = tmp_path / "a.jsonl", FILES[says]
    spoil(path)
    helps(says, lambda: score_file(path, use_java=False, use_mlflow=False), lambda said: mend(path, said))


@remedy("a file is scored as one set: write one file for each")
def test_rows_of_two_sets(tmp_path: Path):
    other = [replace(row, id=f"z{row.id}", source_id=f"z{row.source_id}", split="val") for row in rows()]
    paths = [write(tmp_path / "a.jsonl", [*rows(), *other])]

    def follow(_: Said) -> None:
        paths[:] = [write(tmp_path / "a.jsonl", rows()), write(tmp_path / "b.jsonl", other)]

    return lambda: [score_file(path, use_java=False, use_mlflow=False) for path in paths], follow


@remedy("differ: {}; --allow {}")
def test_files_that_are_not_comparable(files: list[Path], tmp_path: Path):
    other = write(tmp_path / "c.jsonl", rows()[1:])
    allow: list[str] = []
    return lambda: compare([files[0], other], allow, use_java=False), lambda said: allow.append(
        said.found(r"--allow (\w+)")
    )


@remedy("the run folders have no predictions of one name ({}); predict under equal names")
def test_run_folders_of_different_names(files: list[Path], tmp_path: Path):
    runs = [tmp_path / "first", tmp_path / "second"]
    for run, file in zip(runs, files, strict=True):
        write(run / "predictions" / file.name, rows())
    follow = lambda _: write(runs[1] / "predictions" / files[0].name, rows())  # noqa: E731
    return lambda: typed("compare", *runs, "--no-java"), follow


@remedy("{}: {}; bring the run's own file back")
def test_a_run_file_that_was_damaged(files: list[Path], tmp_path: Path):
    (tmp_path / "run").mkdir()
    config = tmp_path / "run/config.yaml"
    config.write_text("a: [")
    other = write(tmp_path / "c.jsonl", rows(), checkpoint={"run": str(tmp_path / "run"), "name": "x", "step": 1})
    follow = lambda said: Path(said.found(r"(\S+config\.yaml): ")).write_text("name: a\n")  # noqa: E731
    return lambda: compare([files[0], other], use_java=False), follow


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(tmp_path / "run/predictions/a.jsonl", rows())
    return tmp_path / "run"


@remedy("no metrics there; `rb score {}/predictions/*.jsonl` writes them")
def test_a_table_of_a_run_that_was_not_scored(run: Path):
    def follow(said: Said) -> None:
        found = [
            str(path) for word in said.commands[0].split()[2:] for path in sorted(Path("/").glob(word.lstrip("/")))
        ]
        assert "error" not in typed("score", *found, *FAST)

    return lambda: typed("table", run), follow


@remedy("no metrics file (it has no {}); score the predictions again")
def test_a_metrics_file_of_something_else(run: Path):
    typed("score", run / "predictions/a.jsonl", *FAST)
    (run / "metrics/a.json").write_text("{}")
    return lambda: typed("table", run), lambda _: typed("score", run / "predictions/a.jsonl", *FAST)


@remedy("score the same captions' set with the same model; keep one of them in the folder")
def test_two_scores_of_one_set(run: Path):
    typed("score", run / "predictions/a.jsonl", *FAST)
    shutil.copy(run / "metrics/a.json", run / "metrics/b.json")
    follow = lambda said: Path(said.found(r"and (\S+b\.json) score")).unlink()  # noqa: E731
    return lambda: typed("table", run), follow


JAVA = {
    "no Java found; {}": None,
    "{} does not start ({}); {}": "#!/no/such/interpreter\n",
    "{} -version failed: {}; {}": "#!/bin/sh\necho broken >&2\nexit 1\n",
}


@pytest.mark.parametrize("way", ["install", "point"])
@pytest.mark.parametrize(
    "says", covers(JAVA, also=["install a Java runtime, 17 to 25 (Debian, Ubuntu: apt-get install"])
)
def test_a_java_that_does_not_work(tmp_path: Path, monkeypatch, says: str, way: str) -> None:
    """`apt-get install` puts a `java` on PATH, which a script that answers as Java does here."""
    for name in ("bin", "home/bin"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("JAVA_HOME", raising=False)

    def put(path: Path, script: str) -> None:
        path.write_text(script)
        path.chmod(0o755)

    if JAVA[says]:
        put(tmp_path / "bin/java", JAVA[says])
    works = "#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n"

    def follow(said: Said) -> None:
        if way == "install":
            put(tmp_path / "bin/java", works)
        else:
            put(tmp_path / "home/bin/java", works)
            monkeypatch.setenv(said.found(r"or point (\w+) at one"), str(tmp_path / "home"))

    helps(says, find_java, follow)
