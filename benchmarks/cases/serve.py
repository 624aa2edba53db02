"""Both servers under the same load: clients that each ask, read the answer as it streams, and ask again.

Prompts never begin alike, so no cache helps either side. An answer's first token is its first piece of text.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from urllib.request import urlopen

from openai import AsyncOpenAI, OpenAI, OpenAIError

from benchmarks.paired import OURS, PEER, CannotMeasure, Result, Row
from benchmarks.sides import CHUNKS, demo_folder

# About as many as the prompts have on average, which are the shorter ones in what people ask: 161 tokens and 338 in
# ShareGPT, 19 and 58 in Alpaca (arXiv 2309.06180, figure 11).
NEW_TOKENS = 64
WORDS = (8, 24, 48, 96)  # of the prompts, about as many tokens
# How often each client asks, by how many there are; so each load has its prompts of all lengths alike.
TURNS = {1: 4, 2: 2, 4: 1, 8: 2, 16: 1}
START_S = 120.0
# What mlx-lm's server calls its only model; ours is told to call it so, too.
NAME = "default_model"
# Both get the same BLAS, which ours takes by itself. Of more than six clients that connect at once mlx-lm lets
# some wait for seconds or fail; that is not what is measured, so it gets a longer queue.
_BEGIN = """from mistral_mlx.backend import preload_blas; preload_blas()
import socketserver; socketserver.TCPServer.request_queue_size = 128
from mlx_lm.server import main; main()"""
COMMANDS = {
    "ours": [sys.executable, "-m", "mistral_mlx", "serve", "--name", NAME],
    "theirs": [sys.executable, "-c", _BEGIN],
}
_VOCABULARY = (
    "a river bridge old quiet stone window garden letter winter seven market small horse paper under along before "
    "green table carries between captain cloud yellow north reads orange kitchen island doctor summer bright train"
)


@dataclass(frozen=True)
class Load:
    """What came of one load.

    Attributes:
        token_s: seconds for a token, over the answers of all clients.
        first_s: seconds to the first token, the median of all answers.
    """

    token_s: float
    first_s: float


def measure(rounds: int) -> Result:
    """Milliseconds for a token, and seconds to the first."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = demo_folder(Path(name) / "demo")
        ports = {side: stack.enter_context(_running(side, folder)) for side in COMMANDS}
        try:
            return _result(_loads(ports, rounds))
        except OpenAIError as error:
            raise CannotMeasure(f"A server did not answer: {error}") from error


def _loads(ports: dict[str, int], rounds: int) -> dict[tuple[str, int], list[Load]]:
    """What each round found, by side and number of clients."""
    _check_alike(ports)
    seeds = count()
    for port in ports.values():  # compiled by then, for every number of clients
        for clients in TURNS:
            asyncio.run(_load(port, clients, 1, next(seeds)))
    loads: dict[tuple[str, int], list[Load]] = {(side, clients): [] for side in ports for clients in TURNS}
    for _ in range(rounds):
        for clients, turns in TURNS.items():
            seed = next(seeds)
            for side, port in ports.items():
                loads[side, clients].append(asyncio.run(_load(port, clients, turns, seed)))
    return loads


def _result(loads: dict[tuple[str, int], list[Load]]) -> Result:
    per_token = {key: [load.token_s * 1e3 for load in found] for key, found in loads.items()}
    first = {key: [load.first_s for load in found] for key, found in loads.items()}

    def row(clients: int) -> Row:
        return Row.of(_many(clients), "ms", per_token["ours", clients], per_token["theirs", clients])

    def gain(side: str, what: str, target: float | None = None) -> Row:
        return Row.of(what, "ms", per_token[side, 8], per_token[side, 1], target, f"{_who(side)} with 1 client")

    rows = [
        *(row(clients) for clients in TURNS),
        gain("ours", "8 clients", 3.0),
        gain("theirs", f"{PEER} with 8 clients"),
        Row.of("8 clients, to the first token", "s", first["ours", 8], first["theirs", 8]),
    ]
    speeds = {side: [1e3 / median(per_token[side, clients]) for clients in TURNS] for side in COMMANDS}
    details = {
        "new_tokens": NEW_TOKENS,
        "words": list(WORDS),
        "answers": {str(clients): clients * turns for clients, turns in TURNS.items()},
        "curve": {"clients": list(TURNS)} | speeds,
    }
    return Result("serve", rows, CHUNKS, details)


def _who(side: str) -> str:
    return OURS if side == "ours" else PEER


def _many(clients: int) -> str:
    return f"{clients} client{'s' * (clients > 1)}"


# ---- the load ------------------------------------------------------------------------------------------------------


async def _load(port: int, clients: int, turns: int, seed: int) -> Load:
    """So many clients at once, each asking so often, one question after another."""
    chance = random.Random(seed)
    prompts = [[_prompt(chance, WORDS[(i * turns + j) % len(WORDS)]) for j in range(turns)] for i in range(clients)]
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        start = time.perf_counter()
        answers = await asyncio.gather(*(_ask(client, of) for of in prompts))
        seconds = time.perf_counter() - start
    tokens = sum(tokens for of in answers for tokens, _ in of)
    return Load(seconds / tokens, median(first for of in answers for _, first in of))


async def _ask(client: AsyncOpenAI, prompts: list[str]) -> list[tuple[int, float]]:
    """The tokens of each answer, and the seconds to its first."""
    answers = []
    for prompt in prompts:
        start, first, tokens = time.perf_counter(), 0.0, 0
        stream = await client.completions.create(
            model=NAME, prompt=prompt, max_tokens=NEW_TOKENS, temperature=0.0, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        async for event in stream:
            if not first and event.choices and event.choices[0].text:
                first = time.perf_counter() - start
            tokens = event.usage.completion_tokens if event.usage else tokens
        if not tokens:
            raise CannotMeasure(f"An answer to {prompt!r} has no tokens.")
        answers.append((tokens, first))
    return answers


def _prompt(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_VOCABULARY.split(), k=words))


def _check_alike(ports: dict[str, int]) -> None:
    texts = []
    for port in ports.values():
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            answer = client.completions.create(model=NAME, prompt="Water boils at", max_tokens=8, temperature=0.0)
            texts.append(answer.choices[0].text.lstrip())  # mlx-lm's loses the space that it begins with
    if texts[0] != texts[1]:
        raise CannotMeasure(f"The two servers do not go on alike: {texts[0]!r} and {texts[1]!r}.")


# ---- the servers ---------------------------------------------------------------------------------------------------


@contextmanager
def _running(side: str, folder: Path) -> Iterator[int]:
    """A server in a process of its own, ready to answer; its port."""
    port = _free_port()
    command = [*COMMANDS[side], "--model", str(folder), "--port", str(port)]
    log = folder.parent / f"{side}.log"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as child:
        try:
            _wait_until_ready(child, port, _who(side), log)
            yield port
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def _wait_until_ready(child: subprocess.Popen[bytes], port: int, who: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and child.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
    raise CannotMeasure(f"{who}'s server did not start, and said last: {said[-1]}")
