"""The client for chat endpoints against a real HTTP server: faults that pass, faults that stay, answers that are kept, a token that is never seen."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from rb.core.chat_endpoint import TOKEN, ChatEndpoint, EndpointError, user
from tests.support.chat_server import ChatServer, chat_server
from tests.support.remedies import remedy

PASSING = ("500", "503", "429", "html", "empty", "cut", "no_choices", "number", "deep", "reset", "slow", "drip")
SECRET = "sk-very-secret"


def last_word(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"]).split()[-1]


def endpoint(server: ChatServer, folder: Path | None = None, **changes: Any) -> ChatEndpoint:
    return ChatEndpoint(server.url, "judge", folder, **{"limit_s": 0.3, "wait_s": 0.001, "tries": 3, **changes})


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_costs_one_more_try(fault: str) -> None:
    with chat_server(last_word, [fault]) as server:
        assert endpoint(server).ask([user("say yes")], temperature=0).text == "yes"
        first, second = server.requests
        assert first == second
        assert first == {"model": "judge", "messages": [{"role": "user", "content": "say yes"}], "temperature": 0}


@pytest.mark.parametrize("fault", ["503", "html", "slow"])
def test_a_fault_that_stays_is_an_error_after_the_tries(fault: str, tmp_path: Path) -> None:
    with chat_server(last_word, [fault] * 3) as server:
        with pytest.raises(EndpointError, match="no answer of judge in 3 tries") as error:
            endpoint(server, tmp_path).ask([user("say yes")])
        assert len(server.requests) == 3
        assert not error.value.refused
        assert list(tmp_path.iterdir()) == []
        assert endpoint(server, tmp_path).ask([user("say yes")]).text == "yes"


@pytest.mark.parametrize(("fault", "words"), [("400", "context too long"), ("redirect", "HTTP 302"), ("404", "/v1")])
def test_a_refused_request_is_not_repeated(fault: str, words: str) -> None:
    with chat_server(last_word, [fault]) as server:
        with pytest.raises(EndpointError, match=words) as error:
            endpoint(server).ask([user("say yes")])
        assert error.value.refused
        assert len(server.requests) == 1


def test_what_was_answered_is_never_asked_again(tmp_path: Path) -> None:
    questions = [[user(f"say word{n}")] for n in range(40)]
    with chat_server(last_word) as server:
        asked = endpoint(server, tmp_path)
        found = list(asked.ask_all(questions, parallel=4, temperature=0))
        assert [answer.text for answer in found] == [f"word{n}" for n in range(40)]  # in order
        assert len(server.requests) == 40
        assert not asked.ask(questions[0], temperature=1).kept  # another setting, another model: another question
        assert not endpoint(server, tmp_path).ask([user("say word0")]).kept
        damaged = sorted(tmp_path.glob("*/*.json"))[:2]
        damaged[0].write_text("{")
        damaged[1].write_text('{"model": "judge", "answer": 3, "finish_reason": null}')
    again = [answer.kept for answer in found]
    assert again == [False] * 40
    with chat_server(lambda _: "new") as moved:  # the address may change
        later = list(endpoint(moved, tmp_path).ask_all(questions, parallel=4, temperature=0))
        assert len(moved.requests) <= 2
        assert sum(not answer.kept for answer in later) == len(moved.requests)


def test_a_server_that_goes_away_ends_the_job_which_goes_on_later(tmp_path: Path) -> None:
    questions = [[user(f"say word{n}")] for n in range(30)]
    with chat_server(last_word) as server:
        dying = iter(range(10))

        def then_dead(request: dict[str, Any]) -> str:
            if next(dying, None) is None:
                server.faults = ["reset"] * 99
            return last_word(request)

        server.answer = then_dead
        with pytest.raises(EndpointError, match="kept in"):
            list(endpoint(server, tmp_path).ask_all(questions, parallel=2))
    before = len(list(tmp_path.glob("*/*.json")))
    assert 10 <= before < 30
    with pytest.raises(EndpointError, match="Connection refused"):
        endpoint(server, tmp_path).ask([user("say more")])
    with chat_server(last_word) as server:
        assert [a.text for a in endpoint(server, tmp_path).ask_all(questions, 3)] == [f"word{n}" for n in range(30)]
        assert len(server.requests) == 30 - before


def test_the_server_says_when_to_come_back_and_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(last_word, ["503"] * 4) as server:
        start = time.monotonic()
        assert endpoint(server, tries=5, wait_s=0.02).ask([user("say yes")]).text == "yes"
        assert 0.2 < time.monotonic() - start < 2  # at least 3/4 of .02 + .04 + .08 + .16


def test_an_answer_without_text_or_with_half_a_character_is_an_answer(tmp_path: Path) -> None:
    texts = iter([None, "half \ud83d of one", ""])
    with chat_server(lambda _: next(texts)) as server:
        asked = endpoint(server, tmp_path)
        assert [asked.ask([user(str(n))]).text for n in range(3)] == ["", "half ? of one", ""]
        assert [asked.ask([user(str(n))]).kept for n in range(3)] == [True] * 3


def test_images_stand_before_the_text() -> None:
    with chat_server(last_word) as server:
        assert endpoint(server).ask([user("say yes", [b"\xff\xd8"])]).text == "yes"
        image, words = server.requests[0]["messages"][0]["content"]
        assert image == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9g="}}
        assert words == {"type": "text", "text": "say yes"}


def test_the_token_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv(TOKEN, SECRET)
    caplog.set_level(logging.DEBUG)
    with chat_server(last_word, ["500", "reset", "401"]) as server:
        with pytest.raises(EndpointError) as error:
            endpoint(server, tmp_path / "answers").ask([user("say yes")])
        endpoint(server, tmp_path / "answers").ask([user("say yes")])
        assert server.tokens == [f"Bearer {SECRET}"] * 4
        assert SECRET not in str(error.value) + caplog.text + repr(endpoint(server))
        assert SECRET not in "".join(p.read_text() for p in (tmp_path / "answers").rglob("*.json"))
        monkeypatch.delenv(TOKEN)
        endpoint(server).ask([user("say yes")])
        assert server.tokens[-1] is None


@pytest.mark.parametrize(
    ("url", "changes"),
    [("s3://x/v1", {}), ("http://me:pw@host/v1", {}), ("http://host/v1?key=1", {}), ("http://h/v1", {"tries": 0})],
)
def test_an_address_or_limit_that_cannot_work_is_refused(url: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"endpoint|login"):
        ChatEndpoint(url, "judge", **changes)


@remedy("see that the endpoint runs, then start the same command again")
def test_no_answer(tmp_path: Path):
    state = {"server": ChatServer(last_word)}
    state["server"].stop()
    return (
        lambda: endpoint(state["server"], tmp_path).ask([user("say yes")]).text,
        lambda _: state.update(server=ChatServer(last_word)),
    )


@remedy(
    "refuses the request (HTTP {}: {}); {}",
    also=["look at model and settings", "set {} to {}", "give the address up to and with /v1"],
)
def test_refused(monkeypatch: pytest.MonkeyPatch):
    server = ChatServer(last_word, ["401"])
    return lambda: endpoint(server).ask([user("say yes")]).text, lambda said: monkeypatch.setenv(
        said.found(r"set (\w+) to"), SECRET
    )


@remedy("give one such as http://HOST:8000/v1")
def test_not_an_endpoint():
    url = ["s3://bucket/v1"]
    return lambda: str(ChatEndpoint(url[0], "judge")), lambda said: url.insert(
        0, said.found(r"such as (\S+)").replace("HOST", "localhost")
    )
