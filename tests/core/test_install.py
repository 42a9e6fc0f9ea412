"""Project files from any folder, the commit only of the package's own checkout, exit codes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rb.core import install
from rb.core.exit_codes import guarded

ROOT = Path(__file__).parents[2]


def test_project_files_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert install.find_file("ds_configs/zero2.json") == ROOT / "ds_configs/zero2.json"
    assert install.project_file("rb/toy/foundation/blip2-opt") == ROOT / "rb/toy/foundation/blip2-opt"
    assert install.project_file("launch/runs/none.yaml") is None
    assert install.project_file("../etc") is None
    assert install.project_file(tmp_path) is None
    # What lies in the working directory comes first.
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs/zero2.json").write_text("{}")
    assert install.find_file("ds_configs/zero2.json") == tmp_path / "ds_configs/zero2.json"


def test_shipped_files_by_name() -> None:
    assert install.find_shipped("toy_opt", install.RUNS) == ROOT / "launch/runs/toy_opt.yaml"
    assert install.find_shipped("toy_opt.yaml", install.RUNS) == ROOT / "launch/runs/toy_opt.yaml"
    assert install.find_shipped("toy_pafe", install.RUNS) is None
    assert install.find_shipped("toy_pafe", install.RUNS, install.ABLATIONS) is not None


def test_commit_is_of_the_own_checkout_only(tmp_path: Path) -> None:
    """A copy of the package in another project's checkout, as an environment inside it has it, knows no commit."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "setup.py").touch()
    for command in (["add", "."], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "env/rb/core").mkdir(parents=True)
    for name in ("__init__.py", "core/__init__.py", "core/install.py"):
        shutil.copy(ROOT / "rb" / name, tmp_path / "env/rb" / name)

    def commit() -> str:
        code = "from rb.core import install; print(install.git_commit())"
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "env")}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout

    assert commit() == "unknown\n"
    # Nor does one that looks like a checkout but is a folder of another one.
    (tmp_path / "env/setup.py").touch()
    (tmp_path / "env/launch/runs").mkdir(parents=True)
    assert commit() == "unknown\n"


def test_commit_of_this_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert install.git_commit().removesuffix("-dirty") == head.strip()


@pytest.mark.parametrize(("error", "code"), [(None, 0), (ValueError("no such box"), 2), (FileNotFoundError("x"), 2)])
def test_user_errors_end_in_one_line(error: Exception | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        if error:
            raise error
        return 0

    assert guarded("rb test", work) == code
    assert capsys.readouterr().err == (f"rb test: error: {error}\n" if error else "")


def test_our_own_faults_are_not_hidden() -> None:
    def work() -> int:
        raise AssertionError

    with pytest.raises(AssertionError):
        guarded("rb test", work)
