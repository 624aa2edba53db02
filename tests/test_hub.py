"""Models from the hub: what is fetched, what survives an interruption, and what is said when it goes wrong.

All of it over real HTTP, against a stand-in that huggingface_hub is pointed to by its own settings.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from mistral_mlx import hub
from mistral_mlx.errors import HubError
from tests.hub_server import Hub, point_to

REPO = "mistralai/Tiny-7B"
TOKEN = "hf_thisIsASecret"
MIB = 1 << 20
SIDE = {"config.json": b"{}", "tokenizer.json": b"[]", "tekken.json": b"{ }", "LICENSE.txt": b"Apache"}
REST = {"README.md": b"#", ".gitattributes": b"*", "original/consolidated.00.pth": b"p" * 50, "pytorch_model.bin": b"b"}
ONE = SIDE | {"model.safetensors": os.urandom(24 * MIB + 5)}
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
SHARDED = (
    SIDE
    | {n: n.encode() * 99 for n in SHARDS}
    | {INDEX: json.dumps({"weight_map": dict(zip("abc", SHARDS, strict=True))}).encode()}
)
GGUFS = {"tiny-Q4_K_M.gguf": b"4" * 100, "tiny-Q4_K_S.gguf": b"s" * 90, "tiny-Q8_0.gguf": b"8" * 200, "README.md": b"#"}


@pytest.fixture(autouse=True)
def cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points huggingface_hub to the stand-in and to an empty cache, as its environment variables would."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return point_to(server, tmp_path, monkeypatch)


def run(server: Hub, home: Path, code: str, *before: str, **env: str) -> subprocess.Popen[str]:
    """A Python of its own that has `hub` and REPO, and takes the settings from the environment as a user's would."""
    settings = {
        "HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.environ["PATH"], **env,
    }  # fmt: skip
    prelude = f"from mistral_mlx import hub; from mistral_mlx.errors import HubError; REPO = {REPO!r}\n"
    command = [*before, sys.executable, "-c", prelude + code]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


PULL = "try: print(hub.pull(REPO))\nexcept HubError as e: print('HubError:', e)"


def refused(name: str = REPO) -> HubError:
    """The error of a pull; it has both sentences, survives pickling, and never holds the token."""
    with pytest.raises(HubError) as caught:
        hub.pull(name)
    error = caught.value
    assert error.message.endswith(".")
    assert error.hint.endswith(".")
    assert TOKEN not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    return error


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", REPO, "mistralai/Mistral-7B-v0.1", "o/n:Q4_K_M", "o/n.x:tiny-Q4_K_M.gguf"])
def test_a_name_on_the_hub(name: str) -> None:
    assert hub.is_hub_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "demo", "/", "a/", "/a", "./x/y", "./x", "/x/y", "~/x", "../x", "a/..", "a/b/c", "a/b/", "a\\b", "C:/x",
        "a/b:", "a/b:x/y", "a/b:x:y", "a/b\n", "a b/c", "a/b--c", "a..b/c", "a/b.git", "a/" + "b" * 95, "é/b", "o/.x",
    ],
)  # fmt: skip
def test_no_name_on_the_hub(name: str) -> None:
    assert not hub.is_hub_name(name)
    assert hub.find(name) is None
    for use in (hub.pull, hub.remove):
        with pytest.raises(HubError, match="not the name"):
            use(name)


@given(st.text() | st.from_regex(r"[\w.~-]{0,5}/[\w.-]{0,60}(:[^\s]{0,5})?"))
def test_what_passes_for_a_name_the_library_takes_too(name: str) -> None:
    if hub.is_hub_name(name):
        validate_repo_id(name.split(":")[0])


# ---- which files ------------------------------------------------------------------------------------------------


def test_of_two_layouts_one_is_fetched(server: Hub) -> None:
    server.repos[REPO] = ONE | REST | {"params.json": b"{1}", "consolidated.safetensors": b"c" * 500}
    folder = hub.pull(REPO)
    assert names_in(folder) == set(ONE) | {"params.json"} == server.fetched()
    assert {name: (folder / name).read_bytes() for name in ONE} == ONE
    assert hub.find(REPO) == folder


def test_shards_come_with_their_index_and_after_the_rest(server: Hub) -> None:
    server.repos[REPO] = SHARDED | REST
    assert names_in(hub.pull(REPO)) == set(SHARDED)
    asked = [r.path.split("/")[-1] for r in server.requests if r.method == "GET" and "/resolve/" in r.path]
    assert asked[-3:] == SHARDS


def test_mistrals_own_layout_alone(server: Hub) -> None:
    files = {"params.json": b"{}", "consolidated.safetensors": b"c" * 500, "tekken.json": b"[]"}
    server.repos[REPO] = files | REST
    folder = hub.pull(REPO)
    assert names_in(folder) == set(files) == server.fetched()
    assert hub.find(REPO) == folder


@pytest.mark.parametrize(
    ("which", "expected"),
    [("q8", "tiny-Q8_0.gguf"), ("Q4_K_M", "tiny-Q4_K_M.gguf"), ("tiny-Q4_K_S.gguf", "tiny-Q4_K_S.gguf")],
)
def test_one_gguf_is_picked(server: Hub, which: str, expected: str) -> None:
    server.repos[REPO] = GGUFS | ONE
    path = hub.pull(f"{REPO}:{which}")
    assert path.name == expected
    assert path.read_bytes() == GGUFS[expected]
    assert server.fetched() == {expected}
    assert hub.find(f"{REPO}:{which}") == path == hub.find(REPO)  # no other is there to be meant
    assert hub.find(f"{REPO}:Q2") is None


def test_a_whole_file_name_is_not_a_part_of_another(server: Hub) -> None:
    server.repos[REPO] = {"tiny.gguf": b"t", "more-tiny.gguf": b"m"}
    assert hub.pull(f"{REPO}:tiny.gguf").read_bytes() == b"t"


def test_the_only_gguf_needs_no_picking(server: Hub) -> None:
    server.repos[REPO] = {"sub/tiny.gguf": b"g" * 100}
    assert hub.pull(REPO).read_bytes() == b"g" * 100


@pytest.mark.parametrize(
    ("files", "which", "words"),
    [
        (GGUFS, "", ["several", "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", f"{REPO}:WHICH"]),
        (GGUFS, ":Q4", ["several", "'Q4'", "tiny-Q4_K_M.gguf, tiny-Q4_K_S.gguf."]),
        (GGUFS, ":Q2", ["no .gguf", "'Q2'", "tiny-Q8_0.gguf"]),
        ({f"a-0000{i}-of-00002.gguf": b"x" for i in (1, 2)}, "", ["split GGUF"]),
        ({f"a{i:02}.gguf": b"x" for i in range(20)}, "", ["and 8 more"]),
        (REST, "", ["no weights", "pytorch_model.bin", "original/consolidated.00.pth"]),
        ({"adapter_model.safetensors": b"x", "config.json": b"{}"}, "", ["no weights", "adapter_model.safetensors"]),
        ({}, "", ["it is empty"]),
        (ONE, ":Q4", ["no weights", "model.safetensors"]),
    ],
)
def test_nothing_to_run(server: Hub, files: dict[str, bytes], which: str, words: list[str]) -> None:
    server.repos[REPO] = files
    error = str(refused(REPO + which))
    assert all(word in error for word in words), error
    assert server.fetched() == set()


def test_an_index_that_names_a_missing_shard(server: Hub) -> None:
    server.repos[REPO] = {name: data for name, data in SHARDED.items() if name != SHARDS[1]}
    assert "broken on the hub" in refused().message


# ---- going on, and progress -------------------------------------------------------------------------------------


def test_a_cut_connection_is_taken_up_again_by_the_next_pull(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _, sleep=time.sleep: sleep(0.01))  # huggingface_hub waits between tries
    server.repos[REPO] = ONE
    server.cuts["model.safetensors"] = [15 * MIB, 0, 0, 0, 0, 0]
    error = refused()
    assert "cut" in error.message
    assert "kept" in error.hint
    assert hub.find(REPO) is None
    server.cuts.clear()
    first = server.bytes_sent("model.safetensors")
    told: list[tuple[int, int]] = []
    folder = hub.pull(REPO, progress=lambda *figures: told.append(figures))
    assert (folder / "model.safetensors").read_bytes() == ONE["model.safetensors"]
    kept = constants.DOWNLOAD_CHUNK_SIZE
    assert server.spans("model.safetensors")[-1] == f"bytes={kept}-"
    assert server.bytes_sent("model.safetensors") - first == len(ONE["model.safetensors"]) - kept
    assert told[0][0] == sum(map(len, SIDE.values())) + kept


def test_a_short_cut_heals_within_one_pull_or_the_next(server: Hub) -> None:
    """Later versions of huggingface_hub take up a cut connection themselves; 1.0 leaves it to the next pull."""
    server.repos[REPO] = ONE
    server.cuts["model.safetensors"] = [15 * MIB]
    try:
        folder = hub.pull(REPO)
    except HubError:
        folder = hub.pull(REPO)
    assert (folder / "model.safetensors").read_bytes() == ONE["model.safetensors"]
    assert server.bytes_sent("model.safetensors") == 15 * MIB + len(ONE["model.safetensors"]) - 10 * MIB


def unfinished(server: Hub, cache: Path) -> Path:
    """Where an attempt at the weights leaves its beginning."""
    (entry,) = (e for e in json.loads(server.describe(REPO))["siblings"] if "lfs" in e)
    return cache / f"models--{REPO.replace('/', '--')}" / "blobs" / f"{entry['lfs']['sha256']}.incomplete"


def partial_file(server: Hub, cache: Path, data: bytes) -> Path:
    """As if an earlier attempt had left this in the cache."""
    path = unfinished(server, cache)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_a_damaged_beginning_is_found_out_and_thrown_away(server: Hub, cache: Path) -> None:
    server.repos[REPO] = ONE
    left = partial_file(server, cache, b"x" * MIB)
    assert "damaged" in refused().message
    assert not left.exists()
    assert (hub.pull(REPO) / "model.safetensors").read_bytes() == ONE["model.safetensors"]


@pytest.mark.parametrize("extra", [0, 1])
def test_a_beginning_that_is_whole_or_too_long(server: Hub, cache: Path, extra: int) -> None:
    server.repos[REPO] = ONE
    data = ONE["model.safetensors"]
    partial_file(server, cache, data + b"x" * extra)
    assert (hub.pull(REPO) / "model.safetensors").read_bytes() == data
    assert server.bytes_sent("model.safetensors") == len(data) * extra


def test_a_server_that_knows_no_ranges(server: Hub, cache: Path) -> None:
    server.repos[REPO] = ONE
    server.range_ignored = True
    partial_file(server, cache, ONE["model.safetensors"][: 15 * MIB])
    told: list[tuple[int, int]] = []
    try:
        folder = hub.pull(REPO, progress=lambda *figures: told.append(figures))
    except HubError:  # huggingface_hub 1.0 takes it for a file that is too long; then there is no beginning left
        told.clear()
        folder = hub.pull(REPO, progress=lambda *figures: told.append(figures))
    assert (folder / "model.safetensors").read_bytes() == ONE["model.safetensors"]
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_pull_goes_on_later(server: Hub, tmp_path: Path, number: signal.Signals) -> None:
    server.repos[REPO] = ONE
    server.pause = 0.1
    process = run(server, tmp_path, PULL)
    left = unfinished(server, tmp_path / "hub")
    deadline = time.monotonic() + 20
    while not left.exists() or not left.stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    if number is signal.SIGINT:
        assert "KeyboardInterrupt" in errors
    server.pause = 0
    kept = left.stat().st_size
    assert 0 < kept < len(ONE["model.safetensors"])
    assert (hub.pull(REPO) / "model.safetensors").read_bytes() == ONE["model.safetensors"]
    assert server.spans("model.safetensors")[-1] == f"bytes={kept}-"


class Enough(Exception):
    """What a listener ends a pull with."""


def test_a_listener_ends_a_pull_and_the_next_goes_on(server: Hub, cache: Path) -> None:
    server.repos[REPO] = ONE
    total = sum(map(len, ONE.values()))

    def tell(done: int, _: int) -> None:
        if done > total / 2:
            raise Enough

    with pytest.raises(Enough):
        hub.pull(REPO, progress=tell)
    assert hub.find(REPO) is None
    (left,) = cache.rglob("*.incomplete")
    kept = left.stat().st_size
    assert hub.download_size(REPO) == len(ONE["model.safetensors"]) - kept < total / 2
    assert (hub.pull(REPO) / "model.safetensors").read_bytes() == ONE["model.safetensors"]
    assert server.spans("model.safetensors")[-1] == f"bytes={kept}-"


def test_progress_never_falls_and_ends_at_the_total(
    server: Hub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_POSITION", "-1")  # huggingface_hub's bars would show without a terminal too
    server.repos[REPO] = ONE
    told: list[tuple[int, int]] = []
    hub.pull(REPO, progress=lambda *figures: told.append(figures))
    total = sum(map(len, ONE.values()))
    done = [d for d, _ in told]
    assert {t for _, t in told} == {total}
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == total
    assert len(set(done)) > len(ONE)  # also within the large file
    assert capfd.readouterr() == ("", "")
    told.clear()
    asked = len(server.requests)
    hub.pull(REPO, progress=lambda *figures: told.append(figures))
    assert set(told) == {(total, total)}
    assert [r.path for r in server.requests[asked:]] == [f"/api/models/{REPO}"]  # only what is new was asked for


def test_without_progress_the_librarys_bars_appear(server: Hub, tmp_path: Path) -> None:
    server.repos[REPO] = ONE
    _, errors = run(server, tmp_path, PULL, TQDM_POSITION="-1").communicate(timeout=30)
    assert "model.safetensors: 100%" in errors


def test_a_cache_without_links_is_not_fetched_again(server: Hub) -> None:
    """Where a file system has none, huggingface_hub moves the file itself into the snapshot."""
    server.repos[REPO] = ONE
    weights = hub.pull(REPO) / "model.safetensors"
    weights.resolve().replace(weights)
    asked = len(server.requests)
    assert hub.pull(REPO) == weights.parent
    assert len(server.requests) == asked + 1


def test_a_new_commit_fetches_what_changed(server: Hub) -> None:
    server.repos[REPO] = ONE
    old = hub.pull(REPO)
    sent = server.bytes_sent("model.safetensors")
    server.repos[REPO] = ONE | {"config.json": b'{"new": 1}'}
    new = hub.pull(REPO)
    assert new != old
    assert (new / "config.json").read_bytes() == b'{"new": 1}'
    assert server.bytes_sent("model.safetensors") == sent
    os.utime(old)
    assert hub.find(REPO) == new
    (new / "model.safetensors").unlink()
    assert hub.find(REPO) == old  # a whole model rather than none


def test_two_at_once_fetch_the_weights_once(server: Hub, tmp_path: Path) -> None:
    server.repos[REPO] = ONE
    server.pause = 0.03
    both = [run(server, tmp_path, PULL) for _ in range(2)]
    out = [process.communicate(timeout=40)[0].strip() for process in both]
    assert out[0] == out[1]
    assert (Path(out[0]) / "model.safetensors").read_bytes() == ONE["model.safetensors"]
    assert server.bytes_sent("model.safetensors") == len(ONE["model.safetensors"])


def test_the_token_goes_to_the_hub_and_nowhere_else(server: Hub) -> None:
    server.repos[REPO] = ONE
    hub.pull(REPO)
    assert {r.token for r in server.requests if not r.path.startswith("/cdn")} == {f"Bearer {TOKEN}"}
    (large,) = (r for r in server.requests if r.path.startswith("/cdn"))
    assert large.host.startswith("localhost")
    assert large.token is None
    assert large.encoding == "identity"  # a range of packed bytes would be of no use


# ---- what goes wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "GatedRepo", ["licence", REPO, "hf auth login", "HF_TOKEN"]),
        (403, "GatedRepo", ["licence", REPO, "hf auth login", "HF_TOKEN"]),
        (401, None, ["token", "private", "spelling"]),
        (401, "RepoNotFound", ["token", "private", "spelling"]),
        (403, None, ["refuses", "token"]),
        (404, "RepoNotFound", ["no model", REPO, "spelling"]),
        (429, None, ["too many requests"]),
        (500, None, ["error 500", "later"]),
        (503, None, ["error 503", "later"]),
    ],
)
def test_the_hub_refuses(server: Hub, status: int, code: str | None, words: list[str]) -> None:
    server.status, server.code = status, code
    error = str(refused())
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Log in</html>", b"", b"[]", b'"x"', b"{}", b'{"id": "x", "sha": "../x"}',
        b'{"id": "x", "siblings": [{}]}', b'{"id": "x", "sha": 5, "siblings": 5}',
    ],
)  # fmt: skip
def test_an_answer_that_is_none(server: Hub, answer: bytes) -> None:
    server.answer = answer
    error = refused()
    assert "not a Hugging Face hub" in error.message
    assert "HF_ENDPOINT" in error.hint


def test_a_file_is_refused_after_its_repository_was_described(server: Hub) -> None:
    server.repos[REPO] = ONE
    server.file_status = 403
    assert "refuses access" in refused().message


def test_a_digest_that_would_lead_out_of_the_cache(server: Hub, cache: Path) -> None:
    server.repos[REPO] = ONE
    listing = json.loads(server.describe(REPO))
    for entry in listing["siblings"]:
        if "lfs" in entry:
            entry["lfs"]["sha256"] = "../../../escaped"
    server.answer = json.dumps(listing).encode()
    assert "not a Hugging Face hub" in refused().message
    assert not list(cache.parent.rglob("escaped*"))


def test_a_connection_that_is_dropped(server: Hub) -> None:
    server.down = True
    error = refused()
    assert "network" in error.message
    assert "goes on there" in error.hint


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "network" in refused().message


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[", "ftp://x"])
def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    refused()


def test_offline_is_said_and_what_is_there_is_found(server: Hub, tmp_path: Path) -> None:
    server.repos[REPO] = SHARDED
    folder = hub.pull(REPO)
    asked = len(server.requests)
    code = "print(hub.find(REPO))\n" + PULL
    out, errors = run(server, tmp_path, code, HF_HUB_OFFLINE="1").communicate(timeout=20)
    assert out.startswith(f"{folder}\nHubError: {REPO} cannot be fetched: HF_HUB_OFFLINE is set")
    assert "Traceback" not in errors
    assert len(server.requests) == asked


def test_a_disk_that_is_too_small_is_refused_before(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos[REPO] = ONE
    partial_file(server, cache, ONE["model.safetensors"][: 10 * MIB])
    missing = sum(map(len, ONE.values())) - 10 * MIB
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(missing, 1, missing - 1))
    error = refused()
    assert f"needs {missing / 1e9:.3g} GB" in error.message
    assert "free" in error.message
    assert "HF_HOME" in error.hint
    assert server.fetched() == set()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(missing, 0, missing))  # what is there needs no room
    hub.pull(REPO)


def test_a_file_that_the_disk_does_not_take(server: Hub, tmp_path: Path) -> None:
    """The kernel's own error, on every system, from a limit on the size of files."""
    server.repos[REPO] = ONE
    limit = 12 * MIB
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n" + PULL
    out, errors = run(server, tmp_path, code).communicate(timeout=20)
    assert out.startswith("HubError: The disk is full"), errors
    assert (hub.pull(REPO) / "model.safetensors").read_bytes() == ONE["model.safetensors"]
    assert server.spans("model.safetensors")[-1] == f"bytes={limit}-"


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system of its own")
def test_a_disk_that_fills_up(server: Hub, tmp_path: Path) -> None:
    """A real ENOSPC: the cache is on a file system of 16 MiB, whose room is misjudged as another writer could."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    server.repos[REPO] = ONE
    home = tmp_path / "small"
    home.mkdir()
    code = f"""
import shutil, subprocess
def mount(options): subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", {str(home)!r}], check=True)
mount("size=16m")
room = shutil.disk_usage('/')._replace(free=10**9)
shutil.disk_usage = lambda _: room
{PULL}
mount("remount,size=64m")
{PULL}
"""
    out, errors = run(server, home, code, "unshare", "-rm").communicate(timeout=30)
    assert len(out.splitlines()) > 1, out + errors
    first, *_, last = out.splitlines()
    assert first.startswith("HubError: The disk is full"), errors
    assert last.startswith(str(home)), errors
    total = len(ONE["model.safetensors"])
    kept = int(str(server.spans("model.safetensors")[-1]).removeprefix("bytes=").rstrip("-"))
    assert 10 * MIB <= kept < total


def test_a_cache_that_may_not_be_written_to(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the folder should be, as root may write everywhere else; and the error that others get."""
    server.repos[REPO] = ONE
    cache.write_text("in the way")
    refused()
    cache.unlink()
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
    error = refused()
    assert str(cache) in error.message
    assert "HF_HOME" in error.hint


# ---- the cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [*SHARDS, "config.json"])
def test_a_model_that_is_not_whole_is_not_found(server: Hub, missing: str) -> None:
    server.repos[REPO] = SHARDED
    folder = hub.pull(REPO)
    (folder / missing).resolve().unlink()
    assert hub.find(REPO) is None
    assert [s.complete for s in hub.stored()] == ([False] if missing in SHARDS else [])


def test_shards_count_themselves_where_the_index_is_missing_or_broken(server: Hub) -> None:
    server.repos[REPO] = SHARDED
    folder = hub.pull(REPO)
    (folder / INDEX).unlink()
    assert hub.find(REPO) == folder
    (folder / SHARDS[2]).unlink()
    assert hub.find(REPO) is None
    (folder / SHARDS[2]).write_bytes(b"x")
    for index in (b"{", b"[]", b'{"weight_map": 5}', b'{"weight_map": {"a": []}}'):
        (folder / INDEX).write_bytes(index)
        assert hub.find(REPO) is None


def test_what_is_stored(server: Hub, cache: Path) -> None:
    assert hub.stored() == []
    server.repos |= {"b/whole": SHARDED, "a/ggufs": GGUFS, "c/half": ONE}
    whole = hub.pull("b/whole")
    picked = [hub.pull(f"a/ggufs:{which}") for which in ("Q8", "Q4_K_S")]
    half = hub.pull("c/half")
    (half / "model.safetensors").resolve().unlink()
    (half / "model-00001-of-00002.safetensors").write_bytes(b"x")
    for junk in ("models--x--y", "models--x", "datasets--a--b/snapshots/1", "models--no--text/snapshots/1"):
        (cache / junk).mkdir(parents=True)
    (cache / "models--no--text/snapshots/1/config.json").write_text("{}")
    (cache / "models--is--file").write_text("")
    (cache / "models--bad--ref/refs/main").mkdir(parents=True)
    (cache / "models--not--utf/refs").mkdir(parents=True)
    (cache / "models--not--utf/refs/main").write_bytes(b"\xff")
    sizes = {name: sum(map(len, files.values())) for name, files in server.repos.items()}
    ref = 40  # the branch's commit is written down too
    assert hub.stored() == [
        hub.Stored("a/ggufs", picked[0].parent, 290 + ref, True),
        hub.Stored("b/whole", whole, sizes["b/whole"] + ref, True),
        hub.Stored("c/half", half, sizes["c/half"] - len(ONE["model.safetensors"]) + 1 + ref, False),
    ]
    assert hub.find("a/ggufs") is None  # two are there


def test_a_first_attempt_is_listed_and_can_be_removed(server: Hub, cache: Path) -> None:
    server.repos[REPO] = {"tiny.gguf": b"g" * 100}
    left = partial_file(server, cache, b"g" * 40)
    assert hub.stored() == [hub.Stored(REPO, left.parents[1], 40, False)]
    assert hub.remove(REPO) == 40
    assert not left.parents[1].exists()


def test_removing(server: Hub, cache: Path) -> None:
    """Two names for the same commit, as after a rename on the hub: only the one that was named goes."""
    server.repos |= {"old/name": SHARDED, "new/name": SHARDED}
    kept = hub.pull("new/name")
    gone = hub.pull("old/name")
    assert kept.name == gone.name
    with pytest.raises(HubError, match="One file"):
        hub.remove("old/name:Q4")
    blobs = sum(p.stat().st_size for p in (cache / "models--old--name" / "blobs").iterdir())
    assert hub.remove("old/name") == blobs
    assert not gone.parents[1].exists()
    assert hub.find("old/name") is None
    assert hub.find("new/name") == kept
    gone = hub.pull("old/name")
    hub.remove("new/name")
    assert hub.find("new/name") is None
    assert hub.find("old/name") == gone
    hub.remove("old/name")
    with pytest.raises(HubError, match="not in the cache"):
        hub.remove("old/name")


def test_the_library_itself_finds_what_was_pulled(server: Hub) -> None:
    server.repos[REPO] = SHARDED
    folder = hub.pull(REPO)
    assert huggingface_hub.snapshot_download(REPO, local_files_only=True) == str(folder)
    assert huggingface_hub.try_to_load_from_cache(REPO, SHARDS[0]) == str(folder / SHARDS[0])
