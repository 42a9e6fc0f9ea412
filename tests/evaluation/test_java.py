"""Java tools: nothing in the environment changes what they compute, none outlives its scorer, and captions are cut for SPICE."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rb.evaluation import java as java_file
from rb.evaluation import spice_process
from rb.evaluation.java import Java, JavaMemoryError, JavaTimeoutError, JavaToolError, find_java, run_tool, started
from rb.evaluation.spice import MAX_WORDS, cut_for_spice
from rb.evaluation.tokenise import ptb_tokenise

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on PATH")


@needs_java
@pytest.mark.java
@pytest.mark.parametrize("variable", ["_JAVA_OPTIONS", "JDK_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS"])
@pytest.mark.parametrize("options", ["-Dfile.encoding=US-ASCII -Duser.language=de", "-Xmx1m -XX:+NoSuchOption"])
def test_options_in_the_environment_reach_no_tool(variable: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, options)
    assert ptb_tokenise(["Ein Café für 0,5 Euro."], find_java()) == ["ein café für 0,5 euro"]


def gone(pid: int, within_s: float = 60.0) -> bool:
    """Whether a process ends soon; a zombie, which somebody else must collect, has ended."""
    for _ in range(int(within_s / 0.05)):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a child with its parent")
@pytest.mark.parametrize("how", ["run_tool(['/bin/sleep', '600'], 'tool', 600)", "METEOR"])
def test_a_killed_scorer_takes_its_tool_along(how: str, tmp_path: Path) -> None:
    """METEOR stays for many sets, with pipes; the others run to their end: both ways to start a tool."""
    script = "from rb.evaluation.java import *\n"
    if how == "METEOR":
        (tmp_path / "java").write_text("#!/bin/sh\nexec /bin/sleep 600\n")
        (tmp_path / "java").chmod(0o755)
        script += "from rb.evaluation.meteor import Meteor\n"
        how = f"Meteor().scores(['a'], [['a']], Java({str(tmp_path / 'java')!r}, '17'))"
    scorer = subprocess.Popen([sys.executable, "-c", script + how])
    try:
        tools: list[psutil.Process] = []
        while not any(tool.name() == "sleep" for tool in tools):  # until it has become the tool
            assert scorer.poll() is None
            time.sleep(0.05)
            tools = psutil.Process(scorer.pid).children()
        scorer.send_signal(signal.SIGKILL)
        assert all(gone(tool.pid) for tool in tools)
    finally:
        scorer.kill()
        scorer.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a child with its parent")
def test_a_tool_whose_scorer_is_gone_before_it_starts_does_not_start(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    before = java_file._bound_to_us()
    orphan = [*before[:-1], "1", "/usr/bin/touch", str(mark)]  # process 1 is not its parent
    assert subprocess.run(orphan, check=False).returncode == 1
    assert not mark.exists()
    subprocess.run([*before, "/usr/bin/touch", str(mark)], check=True)
    assert mark.exists()


def test_a_tool_that_cannot_start_is_a_line() -> None:
    with pytest.raises(JavaToolError, match=r"tool ended with status 1: .*No such file"):
        run_tool(["/no-such-java"], "tool", 10)
    with Path(os.devnull).open("r+b") as nowhere, started(["/bin/true"], "tool", None, nowhere, nowhere) as process:
        assert process.wait(60) == 0


def test_long_captions_are_cut_for_spice_alone() -> None:
    words = [f"w{i}" for i in range(MAX_WORDS + 1)]
    texts = ["", " ".join(words[:-1]), " ".join(words), "a red cube"]
    assert cut_for_spice(texts) == (["", texts[1], texts[1], "a red cube"], 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_tool_is_being_started_takes_it_along(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes when the process runs and nobody knows it yet."""
    made: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def interrupted(*args: object, **options: object) -> subprocess.Popen[bytes]:
        made.append(real(*args, **options))
        os.kill(os.getpid(), number)
        return made[0]

    monkeypatch.setattr(java_file.subprocess, "Popen", interrupted)
    earlier = signal.signal(number, lambda *_: sys.exit(128 + number))
    try:
        with pytest.raises(SystemExit, match=str(128 + number)):
            run_tool(["/bin/sleep", "600"], "tool", timeout_s=60)
        assert signal.getsignal(number) not in (None, signal.SIG_DFL)
    finally:
        signal.signal(number, earlier)
        for process in made:
            late = process.poll() is None
            process.kill()
            process.wait()
            assert not late, "the tool outlived its starter"


def test_a_tool_is_gone_at_its_limit(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    with pytest.raises(JavaToolError, match="did not finish in 1 s; its stderr ends: slow"):
        run_tool(["/bin/sh", "-c", f"echo $$ > {mark}; echo slow >&2; exec sleep 600"], "tool", timeout_s=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    # More output than a pipe holds must not block it.
    assert len(run_tool([sys.executable, "-c", "print('x' * 10**6)"], "tool", timeout_s=60)) == 10**6 + 1


@pytest.mark.parametrize(
    ("program", "raised", "says"),
    [
        ("echo slow >&2; exec sleep 600", JavaTimeoutError, "SPICE did not finish in 1 s; its stderr ends: slow"),
        ("echo out of luck >&2; exit 1", JavaToolError, "SPICE ended with status 1: out of luck"),
        ("read call; echo done; exec sleep 600", JavaToolError, "SPICE wrote no readable result"),
        ("read call; echo full; exit 3", JavaMemoryError, "SPICE filled its heap: full"),
    ],
)
def test_a_spice_that_breaks_down_is_gone_with_its_cause(
    program: str, raised: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if raised is JavaTimeoutError:
        monkeypatch.setattr(spice_process, "TIMEOUT_S", -1.0)  # and 1 s for each of its two texts
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\n{program}\n")
    java.chmod(0o755)
    with pytest.raises(raised, match=says), spice_process.Spice(Java(str(java), "17"), [], 1, None) as spice:
        spice.rows([("a dog", ["a dog"])])
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(("version", "major"), [("1.8.0_292", 8), ("17.0.15", 17), ("25-ea", 25), ("9", 9)])
def test_java_versions(version: str, major: int) -> None:
    assert Java("java", version).major == major


def test_the_engine_in_the_package_is_built_from_its_source(tmp_path: Path) -> None:
    if shutil.which("javac") is None:
        pytest.skip("no JDK here")
    folder = spice_process.ENGINE.parent
    subprocess.run(
        ["javac", "--release", "8", "-nowarn", "-d", tmp_path, *folder.glob("*.java")],
        check=True,
        capture_output=True,
    )
    subprocess.run([sys.executable, "-m", "zipfile", "-e", folder / "json-engine.jar", tmp_path / "jar"], check=True)
    assert {p.name for p in (tmp_path / "jar").rglob("*.class")} == {p.name for p in tmp_path.glob("*.class")}
    service = tmp_path / "jar" / "META-INF" / "services" / "javax.script.ScriptEngineFactory"
    assert service.read_text().strip() == "JsonPassthrough"
