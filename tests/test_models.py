"""What a name stands for, what is said of a model, and the command that lists, fetches and removes."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

import mistral_mlx as mm
from mistral_mlx import cli, hub, models
from mistral_mlx.conversion import convert
from tests.conftest import GOLDEN, TINY
from tests.hub_server import Hub, point_to

REPO = "mistralai/Tiny-7B"
FILES = {f.name: f.read_bytes() for f in (GOLDEN / "window").iterdir() if f.name != "logits.safetensors"}
SEVEN = models.ALIASES["7b"]


@pytest.fixture(autouse=True)
def cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    server.repos = {REPO: FILES, SEVEN: FILES}
    return point_to(server, tmp_path, monkeypatch)


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [REPO, "7b"])
def test_loading_a_name_fetches_it_once(name: str, server: Hub) -> None:
    told: list[tuple[int, int]] = []
    llm = mm.load(name, progress=lambda done, total: told.append((done, total)))
    assert mx.array_equal(llm.logits([1, 2, 3]), mm.load(GOLDEN / "window").logits([1, 2, 3]))
    assert told[-1][0] == told[-1][1] > 0
    asked = len(server.requests)
    mm.load(name)
    assert len(server.requests) == asked  # what is there needs no network


def test_aliases_are_names_on_the_hub() -> None:
    assert {"7b", "7b-v0.1", "nemo"} < models.ALIASES.keys()
    assert all(hub.is_hub_name(name) for name in models.ALIASES.values())
    assert "demo" not in models.ALIASES


def test_a_folder_of_the_same_spelling_goes_before_the_hub(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "full", tmp_path / REPO)
    assert mm.load(REPO).config.sliding_window is None
    assert not server.requests


def test_a_misspelled_path_that_could_be_a_name_says_both(server: Hub) -> None:
    with pytest.raises(mm.HubError, match="no model models/mistral on the hub") as error:
        mm.load("models/mistral")
    assert "no folder of that name" in error.value.hint


@pytest.mark.parametrize("name", ["nothing-here", "./a/b", "a/b/c", "a prompt that was put in the wrong place\n" * 200])
def test_what_cannot_be_a_name_is_refused_without_asking_the_hub(name: str, server: Hub) -> None:
    for use in (mm.load, models.find, models.pull):
        with pytest.raises(mm.InputError, match=r"There is no model|is not the name of a model") as error:
            use(name)
        assert "7b-v0.1" in error.value.hint
    assert not server.requests


def test_a_broken_download_is_told_apart_from_a_broken_model(server: Hub) -> None:
    server.repos[REPO] = FILES | {"config.json": b"{}"}
    with pytest.raises(mm.ConfigError, match="model_type"):
        mm.load(REPO)


@pytest.mark.parametrize("name", ["", None, 3, ["a"], b"demo", 1.5], ids=repr)
def test_what_is_no_name_at_all_is_refused(name: object, server: Hub) -> None:
    for use in (mm.load, models.find):
        with pytest.raises(mm.InputError, match="There is no model"):
            use(name)  # type: ignore[operator]


def test_a_short_name_goes_before_a_folder_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "full", tmp_path / "7b")
    assert mm.load("7b").config.sliding_window == 8
    assert models.info("7b").config.sliding_window == 8
    assert models.info("./7b").config.sliding_window is None


@pytest.mark.parametrize("name", [REPO, "7b"])
def test_the_size_of_a_download_is_what_is_still_to_be_fetched(name: str, server: Hub) -> None:
    whole = sum(map(len, FILES.values()))
    assert models.download_size(name) == whole
    assert not server.fetched()
    server.cuts = {"model.safetensors": [1000] * 50}
    with pytest.raises(mm.HubError):
        models.pull(name)
    server.cuts = {}
    models.pull(name)
    assert models.download_size(name) == 0


def test_the_size_of_a_download_needs_the_hub(server: Hub, demo: mm.LLM) -> None:
    assert models.download_size("demo") == 0
    with pytest.raises(mm.InputError, match="not the name of a model"):
        models.download_size("nothing-here")
    with pytest.raises(mm.HubError, match="no model"):
        models.download_size("nobody/nothing")
    server.down = True
    with pytest.raises(mm.HubError, match="network"):
        models.download_size(REPO)


def test_it_is_said_how_weights_are_stored(tmp_path: Path, demo: mm.LLM) -> None:
    assert models.info(GOLDEN / "window").stored_as == "BF16"
    assert models.info("demo").stored_as == "Q4_1"
    convert(GOLDEN / "window", tmp_path / "packed", quantize=8, group_size=32)
    assert models.info(tmp_path / "packed").stored_as == "8 bits / 32"
    (tmp_path / "bare").mkdir()
    shutil.copy(GOLDEN / "window" / "config.json", tmp_path / "bare")
    assert models.info(tmp_path / "bare").stored_as == ""


# ---- windows ----------------------------------------------------------------------------------------------------


def test_another_window_is_the_model_that_has_it(caplog: pytest.LogCaptureFixture) -> None:
    ids = list(range(1, 40))
    wide = mm.load(GOLDEN / "window", window=None)
    assert wide.config.windows == (None, None)
    assert "window 8" in caplog.text
    assert "Up to 8 tokens" in caplog.text
    assert "grow" in caplog.text
    own = mm.load(GOLDEN / "window")
    assert mx.allclose(wide.logits(ids)[:8], own.logits(ids)[:8], atol=1e-5)
    assert not mx.allclose(wide.logits(ids)[8:], own.logits(ids)[8:], atol=1e-2)
    narrow = mm.load(GOLDEN / "full", window=[None, 8])
    assert narrow.config.windows == (None, 8)
    assert narrow.model.make_cache().layers[1].limit < 256


def test_the_same_window_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for window in (8, [8, 8], [8], "config"):
        assert mm.load(GOLDEN / "window", window=window).config.windows == (8, 8)
    assert not caplog.records


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "8", "none", [], [8, 8, 8], [8, "x"], [0], {8}, 2**31], ids=repr)
def test_what_is_no_window_is_refused(window: object) -> None:
    with pytest.raises(mm.InputError, match="window is") as error:
        mm.load(GOLDEN / "window", window=window)  # type: ignore[arg-type]
    assert error.value.hint


@pytest.mark.parametrize(("typed", "windows"), [("4", (4, 4)), ("none", (None, None)), ("None, 8", (None, 8))])
def test_a_window_is_typed(typed: str, windows: tuple[int | None, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "info", "-m", str(GOLDEN / "window"), "--window", typed, "--json"]) == 0
    window = json.loads(capsys.readouterr().out)["config"]["sliding_window"]
    assert replace(TINY, sliding_window=tuple(window) if isinstance(window, list) else window).windows == windows


# ---- keys and values in fewer bits ------------------------------------------------------------------------------


def test_a_head_that_cannot_be_packed_is_refused_before_any_weights_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((GOLDEN / "window/config.json").read_text()) | {"head_dim": 48}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "head_dim is 48" in failed(["models", "info", "-m", str(tmp_path), "--kv-bits", "8"], capsys)


@pytest.mark.parametrize("command", [["generate", "hello"], ["models", "info"]])
def test_other_bits_are_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "kv_bits is 5" in failed([*command, "-m", str(GOLDEN / "window"), "--kv-bits", "5"], capsys)


def test_what_is_said_of_a_model_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["models", "info", "-m", str(GOLDEN / "configs/mistral-7b-v0.1"), "--dtype", "bfloat16", "--kv-bits", "4"]
    assert cli.main(argv) == 0
    assert "cache, 4 bits" in capsys.readouterr().out
    assert cli.main([*argv, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kv_bits"] == 4
    row = 128 // 2 + 2 * 2 * 2  # words, and two scales and biases in bfloat16
    assert [r["windowed"] for r in record["cache"]] == [32 * 16 * row * n for n in (1024, 4096, 4224, 4224, 4224)]
    assert [r["full"] for r in record["cache"]] == [32 * 16 * row * r["tokens"] for r in record["cache"]]
    assert record["memory"]["cache"] == record["cache"][0]["windowed"]


# ---- the command ------------------------------------------------------------------------------------------------


def failed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    return err


def test_pull_list_info_and_remove(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "pull", "7b"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert (path / "config.json").exists()
    assert cli.main(["models", "list"]) == 0
    table = capsys.readouterr().out
    (line,) = (line for line in table.splitlines() if line.startswith(SEVEN))
    assert line.split()[1:] == ["7b", "199.1", "KiB"]
    assert "7b-v0.1" in table
    assert cli.main(["models", "list", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert SEVEN in [m["name"] for m in record["models"] if m["complete"]]
    assert record["aliases"] == models.ALIASES
    assert cli.main(["models", "info", "-m", "7b"]) == 0
    assert "window 8" in capsys.readouterr().out
    assert cli.main(["models", "rm", "7b", "--yes"]) == 0
    assert "freed" in capsys.readouterr().out
    assert not path.exists()
    assert "has not been pulled" in failed(["models", "rm", "7b", "--yes"], capsys)


def test_nothing_is_fetched_to_describe_a_model(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert "models pull 7b" in failed(["models", "info", "-m", "7b"], capsys)
    assert "models pull a/b" in failed(["models", "info", "-m", "a/b"], capsys)
    assert not server.requests


@pytest.mark.parametrize(
    ("answer", "gone"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_removing_asks(
    answer: str, gone: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.pull(REPO)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: answer, raising=False)
    assert cli.main(["models", "rm", REPO]) == (0 if gone else 1)
    assert f"Remove {REPO}, 199.1 KiB?" in capsys.readouterr().err
    assert path.exists() is not gone


def test_removing_needs_somebody_to_ask(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.pull(REPO)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert "--yes" in failed(["models", "rm", REPO], capsys)
    assert path.exists()


def test_the_demo_is_listed_and_not_removed(demo: mm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.on_disk()[0].name == "demo"
    assert "package" in failed(["models", "rm", "demo", "--yes"], capsys)
    assert models.pull("demo") == models.find("demo")


def test_an_unfinished_download_is_listed_as_such(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.cuts = {"model.safetensors": [1000] * 50}
    assert cli.main(["models", "pull", REPO]) == 2
    assert "next pull goes on there" in capsys.readouterr().err
    assert cli.main(["models", "list"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(REPO))
    assert "unfinished" in line
    server.cuts = {}
    assert cli.main(["models", "pull", REPO]) == 0


def test_a_model_that_does_not_fit_is_described_and_not_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: 10**6)
    assert cli.main(["models", "info", "-m", str(GOLDEN / "window")]) == 0
    assert "does not fit" in capsys.readouterr().out
    with pytest.raises(mm.OutOfMemoryError, match="does not fit") as error:
        mm.load(GOLDEN / "window")
    assert error.value.hint
