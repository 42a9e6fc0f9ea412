"""Caption metrics equal the original scorers', whatever the captions, the locale or the state of Java do."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rb.cli import main as rb
from rb.evaluation import doctor, spice
from rb.evaluation.caption_metrics import (
    METRICS,
    CaptionScores,
    CaptionSet,
    attainable_scores,
    remark_on,
    score_captions,
    score_sets,
)
from rb.evaluation.java import STARTS, Java, JavaMemoryError, JavaMissingError, JavaToolError, find_java
from rb.evaluation.meteor import Meteor
from rb.evaluation.simple_cider import simple_cider, simple_tokenise
from rb.evaluation.spice_jars import JARS_VARIABLE, spice_jars
from rb.evaluation.spice_process import SpiceRow
from rb.evaluation.tokenise import ptb_tokenise

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "caption_metrics.json").read_text(encoding="utf-8"))
PREDICTIONS = {row["id"]: row["prediction"] for row in GOLDEN["rows"]}
REFERENCES = {row["id"]: row["references"] for row in GOLDEN["rows"]}
TOKENISED = [row["tokenised"]["prediction"] for row in GOLDEN["rows"]]
TOKENISED_REFERENCES = [row["tokenised"]["references"] for row in GOLDEN["rows"]]
WITHOUT_JAVA = [name for name in METRICS if name not in ("METEOR", "SPICE")]
# All that some tool takes for the end of a line, and what else has no place in one.
SEPARATORS = [
    "\n",
    "\r",
    "\r\n",
    "\v",
    "\f",
    "\x00",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
    "\t",
    "\ud800",
]

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on PATH")
needs_spice = pytest.mark.skipif(
    not os.environ.get(JARS_VARIABLE) or shutil.which("java") is None,
    reason=f"{JARS_VARIABLE} is not set (or no Java): SPICE's golden values are not checked; rb metrics doctor says how to get the jars",
)


@pytest.fixture(scope="session")
def java() -> Java:
    return find_java()


@pytest.fixture(scope="session")
def meteor(java: Java) -> Iterator[Meteor]:
    """One METEOR for all tests, started where decimals have commas."""
    with Meteor() as process:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("LC_ALL", "de_DE.UTF-8"), ("LANG", "de_DE.UTF-8")):
                patch.setenv(name, value)
            # The locale may not be installed here; this makes any JVM German.
            patch.setenv("_JAVA_OPTIONS", "-Duser.language=de -Duser.country=DE")
            process.scores(["ein Haus"], [["das Haus"]], java)
        yield process


@pytest.fixture(scope="session")
def scored(meteor: Meteor) -> CaptionScores:
    return score_captions(PREDICTIONS, REFERENCES, metrics=[m for m in METRICS if m != "SPICE"], meteor=meteor)


@needs_java
@pytest.mark.java
@pytest.mark.parametrize("name", [name for name in METRICS if name != "SPICE"])
def test_corpus_scores_equal_the_originals(scored: CaptionScores, name: str) -> None:
    assert scored.scores[name] == pytest.approx(GOLDEN["corpus"][name], abs=1e-9)
    assert scored.tokeniser == "ptb"
    assert scored.scores["SPICE"] is None
    assert scored.skipped == {}


@needs_java
@pytest.mark.java
def test_per_example_ciders_average_to_the_corpus(scored: CaptionScores) -> None:
    values = [row["CIDEr"] for row in scored.per_example.values()]
    assert list(scored.per_example) == sorted(PREDICTIONS)
    assert sum(values) / len(values) == pytest.approx(scored.scores["CIDEr"], abs=1e-12)
    assert len(set(values)) > 10


# Parses in chunks of 8 texts into the folder that it is given, and is killed while the process of SPICE is at the third.
KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from rb.evaluation import spice
from rb.evaluation.java import find_java
from rb.evaluation.spice_jars import spice_jars
from rb.evaluation.spice_process import Spice

def run(self, arguments, timeout_s, real=Spice._run):
    self.runs = getattr(self, "runs", 0) + 1
    if self.runs < 3:
        return real(self, arguments, timeout_s)
    self._process.stdin.write("\\t".join(arguments).encode() + b"\\n")
    self._process.stdin.flush()
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)

Spice._run, spice.PARSED_AT_ONCE = run, 8
spice.spice_scores(*json.load(sys.stdin), find_java(), spice_jars(), Path(sys.argv[1]))
"""


@dataclass(frozen=True)
class Cold:
    """What SPICE gave without a cache: its folder, the rows of all captions, how many texts differ and how many were parsed in the end."""

    cache: Path
    rows: list[SpiceRow]
    different: int
    parsed: int


@pytest.fixture(scope="session")
def cold(java: Java, tmp_path_factory: pytest.TempPathFactory) -> Cold:
    """The golden captions twice, then the doctor's, in small chunks, by a call that goes on where a killed one was."""
    folder = tmp_path_factory.mktemp("spice")
    own = list(doctor.CAPTIONS.values())
    predictions, references = [*TOKENISED * 2, *own], [*TOKENISED_REFERENCES * 2, *([t] for t in own)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, folder], input=json.dumps([predictions, references]), text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    before = spice.PARSED["texts"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spice, "PARSED_AT_ONCE", 8)
        patch.setattr(spice, "SCORED_AT_ONCE", 7)
        _, rows = spice.spice_scores(predictions, references, java, spice_jars(), folder)
    different = {text for one, more in zip(predictions, references, strict=True) for text in (one, *more)}
    return Cold(folder, rows, len(different), spice.PARSED["texts"] - before)


@pytest.fixture(scope="session")
def spice_cache(cold: Cold) -> Path:
    """A cache that holds the golden captions and the doctor's."""
    return cold.cache


@needs_spice
@pytest.mark.java
def test_spice_in_chunks_equals_the_original_per_caption(cold: Cold) -> None:
    golden = [row["spice"] for row in GOLDEN["rows"]]
    assert cold.rows[: len(golden) * 2] == golden * 2


@needs_spice
@pytest.mark.java
def test_spice_parses_each_text_once_and_a_kill_costs_one_chunk(cold: Cold, java: Java) -> None:
    """Before it was killed two chunks were whole; the third may have been. What is scored later, alone or again, is not parsed again."""
    assert cold.different - 3 * 8 <= cold.parsed <= cold.different - 2 * 8
    before = spice.PARSED["texts"]
    mean, rows = spice.spice_scores(TOKENISED, TOKENISED_REFERENCES, java, spice_jars(), cold.cache)
    assert spice.PARSED["texts"] == before
    assert rows == [row["spice"] for row in GOLDEN["rows"]]
    assert mean == pytest.approx(GOLDEN["corpus"]["SPICE"], abs=1e-9)
    assert any(cold.cache.rglob("data.mdb"))


@needs_spice
@pytest.mark.java
def test_any_number_of_sets_starts_each_java_program_once(java: Java, scored: CaptionScores, spice_cache: Path) -> None:
    """Every value of a set among others is the one that it has alone."""
    one = CaptionSet(PREDICTIONS, REFERENCES)
    few = CaptionSet(
        {i: PREDICTIONS[i] for i in list(PREDICTIONS)[:3]}, {i: REFERENCES[i] for i in list(REFERENCES)[:3]}
    )
    before, cpu_s = STARTS.copy(), dict[str, float]()
    found = score_sets([few, one, few, one], spice_cache=spice_cache, attainable=True, cpu_s=cpu_s)
    assert STARTS - before == {"PTB tokeniser": 1, "METEOR": 1, "SPICE": 1}
    assert found[0] == found[2]
    for each in found[1::2]:
        assert {**each.scores, "SPICE": None} == scored.scores
        assert each.scores["SPICE"] == pytest.approx(GOLDEN["corpus"]["SPICE"], abs=1e-9)
        assert [each.spice_details[i] for i in PREDICTIONS] == [row["spice"] for row in GOLDEN["rows"]]
        assert each.attainable["CIDEr"] > each.scores["CIDEr"]
    assert scored.attainable == {}
    assert set(cpu_s) == {*METRICS, "tokeniser", "attainable"}
    assert min(cpu_s["tokeniser"], cpu_s["METEOR"], cpu_s["SPICE"]) > 0.1  # a JVM's time is in it


def test_a_spice_whose_heap_is_full_starts_once_more_with_more(no_java: Path, tmp_path: Path) -> None:
    fake_java(
        no_java,
        f'read call; echo "$call" >> {tmp_path}/calls; echo "java.lang.OutOfMemoryError: Java heap space"; exit 3',
    )
    with pytest.raises(JavaMemoryError, match=r"SPICE filled its heap: java\.lang.OutOfMemoryError: Java heap space"):
        spice.spice_scores(["a dog"], [["a dog"]], find_java(), [], tmp_path / "cache")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert all("-cache" in call for call in calls)  # what was parsed is not parsed again


@needs_spice
@pytest.mark.java
def test_doctor_finds_everything_in_order(meteor: Meteor, spice_cache: Path) -> None:
    found = {what for works, what, _ in doctor.diagnose(meteor, spice_cache) if works}
    assert found == {"Java", "pycocoevalcap", "SPICE's jars", "tokeniser", *METRICS}


def test_one_process_per_spice_cache(tmp_path: Path) -> None:
    with spice._locked(tmp_path, []) as first, spice._locked(tmp_path, []) as second:
        assert first is not None
        assert second is None
    with spice._locked(tmp_path, []) as again:
        assert again == first
    (tmp_path / "file").touch()
    with spice._locked(tmp_path / "file", []) as impossible:
        assert impossible is None


@needs_java
@pytest.mark.java
def test_no_separator_moves_a_caption_to_another_example(java: Java) -> None:
    texts, expected = [], []
    for separator in SEPARATORS:
        for hostile in (separator + "big green ball", f"big{separator}green ball", "big green ball" + separator):
            texts += ["left red cube", hostile, "", "zebra"]
            expected += ["left red cube", "big green ball", "", "zebra"]
    assert ptb_tokenise(texts, java) == expected
    assert simple_tokenise(texts) == expected


@needs_java
@pytest.mark.java
def test_meteor_reads_hostile_texts_as_their_words(java: Java, meteor: Meteor) -> None:
    hostile = ["big" + separator + "green ball" for separator in (*SEPARATORS, "|||", " ||| ", "|||||", "  ")]
    references = [["the large ||| green ball\n", "biggest\rball"]] * len(hostile)
    _, scores = meteor.scores([*hostile, ""], [*references, ["a dog"]], java)
    _, plain = meteor.scores(["big green ball"], [["the large green ball", "biggest ball"]], java)
    assert scores == [*plain * len(hostile), 0.0]
    assert 0.3 < plain[0] < 1


def test_tokenisers_agree_on_ordinary_captions() -> None:
    for row in GOLDEN["rows"]:
        assert simple_tokenise([row["prediction"]]) == [row["tokenised"]["prediction"]]
        assert simple_tokenise(row["references"]) == row["tokenised"]["references"]


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with an empty folder as its only entry; returns the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


def fake_java(folder: Path, body: str) -> None:
    """A ``java`` that gives a version and then does ``body``."""
    path = folder / "java"
    path.write_text(
        f"""#!/bin/sh\nif [ "$1" = -version ]; then echo 'openjdk version "17.0.1"' >&2; exit 0; fi\n{body}\n"""
    )
    path.chmod(0o755)


def assert_plain_metrics_only(found: CaptionScores) -> None:
    for name in WITHOUT_JAVA:
        assert found.scores[name] == pytest.approx(GOLDEN["corpus"][name], abs=1e-9)
    assert found.scores["METEOR"] is None
    assert found.scores["SPICE"] is None
    assert found.tokeniser == "simple"
    assert set(found.skipped) == {"METEOR", "SPICE"}
    assert all("\n" not in reason for reason in found.skipped.values())


def test_without_java_the_other_metrics_remain(no_java: Path) -> None:
    found = score_captions(PREDICTIONS, REFERENCES)
    assert_plain_metrics_only(found)
    assert "no Java found; install a Java runtime" in found.skipped["METEOR"]


def test_a_java_that_breaks_down_costs_only_its_metrics(no_java: Path) -> None:
    fake_java(no_java, "echo out of luck >&2; exit 3")
    found = score_captions(PREDICTIONS, REFERENCES)
    assert_plain_metrics_only(found)
    assert "status 3: out of luck" in found.skipped["METEOR"]
    (no_java / "java").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(JavaMissingError, match="-version failed"):
        find_java()


def test_a_silent_meteor_ends_at_its_limit(no_java: Path) -> None:
    fake_java(no_java, "exec /bin/sleep 600")
    start = time.monotonic()
    with Meteor(timeout_s=0.5) as process:
        with pytest.raises(JavaToolError, match="METEOR failed after its"):
            process.scores(["a"], [["a"]], find_java())
        fake_java(no_java, "echo Exception in thread main >&2")
        with pytest.raises(JavaToolError, match="Exception in thread main"):
            process.scores(["a"], [["a"]], find_java())
    assert time.monotonic() - start < 10


def test_the_doctor_names_what_is_missing(
    no_java: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(JARS_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(no_java))
    assert rb(["metrics", "doctor"]) == 1
    lines = {line[8:22].strip(): line for line in capsys.readouterr().out.splitlines()}
    missing = {what for what, line in lines.items() if line.startswith("MISSING")}
    assert missing == {"Java", "SPICE's jars", "tokeniser", "METEOR", "SPICE"}
    assert {what for what, line in lines.items() if line.startswith("ok")} == {"pycocoevalcap", *WITHOUT_JAVA}
    assert "install a Java runtime" in lines["METEOR"]


def test_the_order_of_the_ids_changes_nothing() -> None:
    expected = score_captions(PREDICTIONS, REFERENCES, use_java=False)
    for seed in range(3):
        ids = list(PREDICTIONS)
        random.Random(seed).shuffle(ids)
        found = score_captions(
            {i: PREDICTIONS[i] for i in ids}, {i: REFERENCES[i] for i in reversed(ids)}, use_java=False
        )
        assert found == expected


def test_short_captions_have_a_lower_best() -> None:
    words = ["red", "blue", "green", "small", "big", "left", "right", "top", "near", "far"]
    short = {f"{i}": [f"{a} {words[i - 1]} {words[i - 2]}"] for i, a in enumerate(words)}
    assert attainable_scores(short)["CIDEr"] == pytest.approx(7.5)
    assert attainable_scores(short)["BLEU-4"] < 0.05
    long = {i: [" ".join([*texts[0].split(), *texts[0].split()])] for i, texts in short.items()}
    assert attainable_scores(long)["CIDEr"] == pytest.approx(10)


def test_attainable_is_the_best_of_the_references() -> None:
    references = {i: simple_tokenise(texts) for i, texts in REFERENCES.items()}
    best = attainable_scores(references)["CIDEr"]
    for k in (0, 1):
        copied = {i: texts[min(k, len(texts) - 1)] for i, texts in references.items()}
        assert score_captions(copied, references, use_java=False).scores["CIDEr"] < best
    assert not math.isclose(best, 10)


@pytest.mark.parametrize(
    ("predictions", "references", "metrics", "message"),
    [
        ({}, {}, METRICS, "no captions to score"),
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, METRICS, "id 'b' has references but no prediction"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, METRICS, "id 'b' has a prediction but no references"),
        ({"a": "x"}, {"a": []}, METRICS, "id 'a' has an empty list of references"),
        ({"a": "x"}, {"a": ["x"]}, ["cider"], "unknown metric 'cider'; known: CIDEr"),
    ],
)
def test_unusable_sets_are_named(predictions, references, metrics, message) -> None:
    with pytest.raises(ValueError, match=message):
        score_captions(predictions, references, use_java=False, metrics=metrics)


def test_cider_while_training_is_the_one_that_scoring_computes_without_java() -> None:
    ids = sorted(PREDICTIONS)
    found = simple_cider([PREDICTIONS[i] for i in ids], [REFERENCES[i] for i in ids])
    assert found == score_captions(PREDICTIONS, REFERENCES, use_java=False).scores["CIDEr"] > 0


def test_empty_captions_score_nothing() -> None:
    found = score_captions({"a": "", "b": "..."}, {"a": ["a dog"], "b": ["the cat", "a cat"]}, use_java=False)
    assert {name: value for name, value in found.scores.items() if value is not None} == pytest.approx(
        dict.fromkeys(WITHOUT_JAVA, 0.0), abs=1e-6
    )


def test_sets_whose_cider_says_nothing_are_known_before_they_are_scored() -> None:
    for references in ([["a red cube", "the cube"]], [["a red cube."], ["A red cube"]]):
        assert "whatever is predicted" in str(remark_on(references))
    assert remark_on([["a red cube"], ["a ball"]]) is None
