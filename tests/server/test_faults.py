"""Whatever goes wrong with one request, at any stage: it is told, the others are answered, the next one is served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mistral_mlx import answer, llm, scheduling
from mistral_mlx.engine import choice
from mistral_mlx.server import answers
from tests.server.conftest import Answer, Running

MARK = 31  # max_tokens of the request that something goes wrong with
Fault = Callable[[pytest.MonkeyPatch], None]


def failing(patch: pytest.MonkeyPatch, place: Any, name: str, marked: Callable[..., bool]) -> None:
    """Have a function fail where it is called for the marked request."""
    whole = getattr(place, name)

    def fails(*args: Any, **given: Any) -> Any:
        if marked(*args, **given):
            raise RuntimeError("secret insides")
        return whole(*args, **given)

    patch.setattr(place, name, fails)


def tokenize(patch: pytest.MonkeyPatch) -> None:
    failing(patch, llm.LLM, "ask", lambda self, prompt, **options: options["max_tokens"] == MARK)


def admit(patch: pytest.MonkeyPatch) -> None:
    failing(patch, scheduling.Scheduler, "_await_turn", lambda self, task: task.request.params.max_tokens == MARK)


def prefill(patch: pytest.MonkeyPatch) -> None:
    marked = lambda prompt: any(task.request.params.max_tokens == MARK for task in prompt.tasks)  # noqa: E731
    failing(patch, scheduling.Scheduler, "_read_piece", lambda self, prompt, room: marked(prompt))
    patch.setattr(scheduling.Scheduler, "_is_new", lambda self, prompt: False)  # each is read alone


def prefill_together(patch: pytest.MonkeyPatch) -> None:
    is_new = scheduling.Scheduler._is_new
    prefill(patch)
    patch.setattr(scheduling.Scheduler, "_is_new", is_new)
    failing(patch, scheduling, "read_together", lambda model, prompts: True)


def step(patch: pytest.MonkeyPatch) -> None:
    failing(patch, scheduling.Batch, "step", lambda self: any(row.params.max_tokens == MARK for row in self.rows))


def sample(patch: pytest.MonkeyPatch) -> None:
    failing(patch, choice, "sample", lambda scores, params, keys=None: params.max_tokens == MARK)


def detokenize(patch: pytest.MonkeyPatch) -> None:
    failing(patch, answer.Answer, "feed", lambda self, token: self._params.max_tokens == MARK)


def end(patch: pytest.MonkeyPatch) -> None:
    failing(patch, answer.Answer, "end", lambda self, stats: self._params.max_tokens == MARK)


def stream(patch: pytest.MonkeyPatch) -> None:
    marked = lambda self: self._asked.requests[0].params.max_tokens == MARK  # noqa: E731
    failing(patch, answers.TextAnswers, "events", lambda self, index, chunk: marked(self))
    failing(patch, answers.TextAnswers, "whole", lambda self, chunks, usage: marked(self))


STAGES: list[Fault] = [tokenize, admit, prefill, prefill_together, step, sample, detokenize, end, stream]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__)
@pytest.mark.parametrize("streamed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["whole", "streamed"])
def test_one_that_fails_fails_alone(
    stage: Fault, streamed: bool, running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others: list[dict[str, Any]] = [
        {"prompt": f"Tell me of {k} things", "max_tokens": 60, "seed": k, "temperature": 0.2 * k, "stream": k % 2 == 0}
        for k in range(4)
    ]
    expected = [said(running.complete(**body)) for body in others]
    stage(monkeypatch)
    found: dict[int, Answer] = {}
    threads = [
        threading.Thread(target=lambda k=k, body=body: found.__setitem__(k, running.complete(**body)))
        for k, body in enumerate(others)
    ]
    for thread in threads:
        thread.start()
    failed = running.complete(prompt="Marked", max_tokens=MARK, temperature=1.7, stream=streamed)
    for thread in threads:
        thread.join(30)
    error = failed.error if failed.status != 200 else failed.events[-1]["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in error["message"]
    assert "secret insides" in caplog.text
    assert [said(found[k]) for k in range(4)] == expected
    assert said(running.complete(**others[0])) == expected[0]


def said(answer: Answer) -> str:
    """The text of a completion; it came to its end."""
    assert answer.status == 200, answer.body
    if answer.body.startswith(b"data"):
        *events, last = answer.events
        assert last == "[DONE]"
        return "".join(choice["text"] for event in events for choice in event["choices"])
    return str(answer.json["choices"][0]["text"])


KILLERS: list[dict[str, Any]] = [{"prompt": ["ab", "cd"]}, {"prompt": ""}, {"prompt": "", "stream": True}]


@pytest.mark.parametrize("body", KILLERS, ids=str)
def test_what_ends_other_servers_does_not_end_this_one(body: dict[str, Any], running: Running) -> None:
    assert running.complete(**body).status in (200, 400)
    assert running.complete().status == 200
    assert running.ask("GET", "/health").status == 200


def test_a_prompt_that_is_an_earlier_one_with_its_answer(running: Running) -> None:
    first = {"prompt": "Once upon a time", "max_tokens": 10, "temperature": 0}
    answer = said(running.complete(**first))
    for stream in (False, True):
        again = running.complete(prompt=first["prompt"] + answer, max_tokens=5, temperature=0, stream=stream)
        assert said(again)
    assert said(running.complete(**first)) == answer
