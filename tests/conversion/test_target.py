"""The folder that a conversion makes: whole or not at all, whatever stops it, and what it replaces is never lost."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mistral_mlx import models
from mistral_mlx.config import ModelConfig
from mistral_mlx.conversion import convert
from mistral_mlx.conversion.target import check_space, workspace
from mistral_mlx.errors import InputError, MistralError, WeightsError
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.names import expected_shapes
from tests.conftest import GOLDEN

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, str(ROOT / "convert.py")]
OPTIONS = ["-q", "4", "--group-size", "32"]
MIB = 1 << 20
FILES = {"config.json": b"{}", "model.safetensors": b"old weights", "tokenizer.json": b"{}"}
NEW = {"config.json": b"{ }", "model.safetensors": b"new weights"}


def fill(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make(out: Path, *, force: bool = False) -> None:
    with workspace(out, force=force) as work:
        fill(work / "new", NEW)


def refused(call: Callable[[], object], kind: type[MistralError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    for word in words:
        assert word in caught.value.message
    assert caught.value.message.endswith(".")
    assert caught.value.hint.endswith(".")


@pytest.mark.parametrize("foreign", ["thesis.docx", "more/model.safetensors", "notes.txt"])
def test_a_folder_with_anything_of_somebodys_own_is_not_replaced(foreign: str, tmp_path: Path) -> None:
    out = fill(tmp_path / "out", FILES | {foreign: b"mine"})
    refused(lambda: make(out, force=True), InputError, foreign.split("/")[0])
    assert content(out) == FILES | {foreign: b"mine"}


@pytest.mark.parametrize("out", ["", "."])
def test_nothing_is_no_folder_to_make(out: str) -> None:
    refused(lambda: make(Path(out), force=True), InputError, "the current folder")


# ---- what appears -----------------------------------------------------------------------------------------------


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with workspace(out) as work:
        fill(work / "new", NEW)
        (work / "scrap").write_bytes(b"left over")
        assert not out.exists()
        assert work.stat().st_dev == tmp_path.stat().st_dev
    assert content(tmp_path) == {f"a/b/out/{name}": data for name, data in NEW.items()}
    assert names(out.parent) == {"out"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), WeightsError("Bad.", "Mend it."), ZeroDivisionError()])
def test_an_error_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    def fail(out: Path, *, force: bool) -> None:
        with pytest.raises(type(error)), workspace(out, force=force) as work:  # noqa: PT012  the block is the subject
            fill(work / "new", NEW)
            raise error

    fail(tmp_path / "a" / "b" / "out", force=False)
    assert names(tmp_path) == set()
    fill(tmp_path / "out")
    fail(tmp_path / "out", force=True)
    assert names(tmp_path) == {"out"}
    assert content(tmp_path / "out") == FILES


def test_with_force_a_model_folder_is_replaced(tmp_path: Path) -> None:
    out = fill(tmp_path / "out")
    with workspace(out, force=True) as work:
        fill(work / "new", NEW)
        assert content(out) == FILES
    assert content(out) == NEW
    assert names(tmp_path) == {"out"}


def test_with_force_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refused(lambda: make(tmp_path / "out"), InputError, "there already")
    make(tmp_path / "out", force=True)
    assert content(tmp_path / "out") == NEW


def test_what_is_no_model_folder_is_never_replaced(tmp_path: Path) -> None:
    mine = fill(tmp_path / "mine", {"thesis.tex": b"years"})
    file = tmp_path / "file"
    file.write_bytes(b"x")
    model = fill(tmp_path / "model")
    before = content(tmp_path)
    refused(lambda: make(model), InputError, "there already", str(model))
    for force in (False, True):
        refused(lambda force=force: make(file, force=force), InputError, str(file), "is a file")
        refused(lambda force=force: make(mine, force=force), InputError, str(mine))
        refused(lambda force=force: make(file / "out", force=force), WeightsError, str(file))
        refused(lambda force=force: make(file / "a" / "out", force=force), WeightsError, str(file))
    assert content(tmp_path) == before
    assert names(tmp_path) == {"mine", "file", "model"}


def test_a_link_to_a_model_folder_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    place = fill(tmp_path / "disk" / "model")
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "link"
    link.symlink_to(place)
    refused(lambda: make(link), InputError, "there already")
    make(link, force=True)
    assert link.is_symlink()
    assert content(place) == NEW
    assert names(tmp_path / "here") == {"link"}
    assert names(tmp_path / "disk") == {"model"}


def test_a_link_to_nothing_leads_to_where_the_folder_is_made(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "model")
    make(link)
    assert content(tmp_path / "disk" / "model") == NEW
    assert link.is_symlink()


def test_relative_paths_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    with workspace(Path("near")) as work:
        fill(work / "new", NEW)
        monkeypatch.chdir(tmp_path / "elsewhere")
    make(Path("~/models/m"))
    assert content(tmp_path / "near") == NEW
    assert content(tmp_path / "home" / "models" / "m") == NEW
    assert names(tmp_path / "elsewhere") == set()


def test_what_can_be_no_path_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for out in (Path("~nobody-of-that-name/x"), tmp_path / ("n" * 300), tmp_path / ("n" * 300) / "x", loop / "x"):
        with pytest.raises(MistralError) as caught:
            convert(GOLDEN / "window", out)
        assert caught.value.hint, out
    assert names(tmp_path) == {"loop"}


# ---- the source -------------------------------------------------------------------------------------------------


def test_a_source_that_would_be_replaced_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(GOLDEN / "window", model)
    shutil.copytree(GOLDEN / "window", model / "inner")
    (tmp_path / "link").symlink_to(model)
    shutil.copytree(GOLDEN / "window", tmp_path / ".model.replaced" / "inner")
    shutil.copytree(GOLDEN / "window", tmp_path / ".model.partial" / "new")
    (model / "packed.tar").write_bytes(b"x")
    before = content(tmp_path)
    link = tmp_path / "link"
    hidden = [tmp_path / ".model.replaced" / "inner", tmp_path / ".model.partial" / "new"]
    inside = [model, model / "inner", model / "packed.tar", link, link / "inner", model / "model.safetensors"]
    for out in (model, link):
        for source in (*inside, *hidden):
            refused(lambda source=source, out=out: convert(source, out, force=True), InputError, str(source))
            assert content(tmp_path) == before


def test_a_source_is_refused_by_where_it_is_and_not_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short name stands for a model elsewhere, even where a folder of that name is."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "7b", {"config.json": b"{}"})
    monkeypatch.setattr(models, "_place", lambda model: GOLDEN / "window" if model == "7b" else Path(model))
    convert("7b", Path("7b"), force=True)
    assert open_checkpoint(tmp_path / "7b").tensors


def test_a_folder_inside_the_source_can_be_made(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(GOLDEN / "window", model)
    before = content(model)
    convert(model, model / "4bit", 4, group_size=32)
    assert open_checkpoint(model / "4bit").tensors
    assert {name: data for name, data in content(model).items() if not name.startswith("4bit/")} == before


# ---- others at work ---------------------------------------------------------------------------------------------


def test_what_another_process_is_making_is_refused_until_it_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"""
from pathlib import Path
from mistral_mlx.conversion.target import workspace
with workspace(Path({str(out)!r})) as work:
    (work / "new" / "theirs").write_text("x")
    print("working", flush=True)
    input()
    raise SystemExit(7)
"""
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "working\n"
    refused(lambda: make(out), InputError, "Another process", "out.partial")
    assert (tmp_path / ".out.partial" / "new" / "theirs").exists()
    other.communicate("go on\n", timeout=60)
    assert other.returncode == 7
    make(out)
    assert content(tmp_path) == {f"out/{name}": data for name, data in NEW.items()}


def test_a_lock_is_what_counts_and_not_the_folder(tmp_path: Path) -> None:
    work = fill(tmp_path / ".out.partial", {"new/shard": b"half", "source/x": b"y", "stray": b"z"})
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    refused(lambda: make(tmp_path / "out"), InputError, "Another process")
    assert content(work) == {"new/shard": b"half", "source/x": b"y", "stray": b"z"}
    os.close(lock)
    with workspace(tmp_path / "out") as work:
        assert names(work) == {"new"}
        fill(work / "new", NEW)
    assert names(tmp_path) == {"out"}
    assert content(tmp_path / "out") == NEW


def test_a_link_in_place_of_the_workspace_is_never_followed(tmp_path: Path) -> None:
    mine = fill(tmp_path / "mine")
    (tmp_path / ".out.partial").symlink_to(mine)
    refused(lambda: make(tmp_path / "out"), WeightsError, str(tmp_path / "out"))
    assert content(mine) == FILES
    (tmp_path / ".out.partial").unlink()
    fill(tmp_path / ".out.partial" / "new")
    (tmp_path / ".out.partial" / "link").symlink_to(mine)
    make(tmp_path / "out")
    assert content(mine) == FILES
    assert names(tmp_path) == {"out", "mine"}


@pytest.mark.parametrize("force", [False, True])
def test_a_replacement_that_was_killed_is_undone_even_by_a_run_that_fails(force: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(tmp_path / ".out.replaced")
    fill(tmp_path / ".out.partial" / "new", NEW)
    if force:
        with pytest.raises(KeyboardInterrupt), workspace(out, force=True):
            raise KeyboardInterrupt
    else:
        refused(lambda: make(out), InputError, "there already")
    assert content(out) == FILES
    assert names(tmp_path) == {"out"}


def test_what_a_finished_replacement_left_is_removed(tmp_path: Path) -> None:
    out = fill(tmp_path / "out", NEW)
    fill(tmp_path / ".out.replaced")
    refused(lambda: make(out), InputError, "there already")
    assert names(tmp_path) == {"out"}
    assert content(out) == NEW


@pytest.mark.parametrize("fails", ["to out", "after out"])
def test_a_replacement_that_fails_puts_the_old_folder_back(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before, and just after, the new folder is moved."""
    out = fill(tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name != "new":
            return rename(self, target)
        if fails == "after out":
            rename(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(out, force=True)
    assert content(out) == (FILES if fails == "to out" else NEW)
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_before_any_step_it_takes_on_the_disk(replacing: bool, tmp_path: Path) -> None:
    """Every step that Python is told of: folders made, files opened, renamed, deleted."""
    steps = 0
    while True:
        place = tmp_path / str(steps)
        out = place / "out"
        place.mkdir()
        if replacing:
            fill(out)
        child = os.fork()
        if not child:
            left = iter(range(steps))

            def killed(event: str, _: object, left: object = left) -> None:
                if event in ("os.mkdir", "os.rename", "os.rmdir", "os.remove", "open") and next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                sys.addaudithook(killed)
                make(out, force=replacing)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        state = content(out) if out.exists() else None
        assert state in (NEW, FILES if replacing else None) or (replacing and state is None), steps
        with pytest.raises(ZeroDivisionError), workspace(out, force=True):
            raise ZeroDivisionError
        state = content(out) if out.exists() else None
        assert state in (NEW, FILES if replacing else None), steps
        assert names(place) == ({"out"} if state else set()), steps
        if not os.WIFSIGNALED(status):
            break
        steps += 1
    assert steps > 10
    assert state == NEW


# ---- the disk ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_may_not_be_written_to(tmp_path: Path) -> None:
    fill(tmp_path / "shut" / "out")
    (tmp_path / "shut").chmod(0o555)
    try:
        for out in ("out", "new", "a/b"):
            refused(lambda out=out: make(tmp_path / "shut" / out, force=True), WeightsError, "Permission denied")
        assert content(tmp_path / "shut" / "out") == FILES
    finally:
        (tmp_path / "shut").chmod(0o755)


def test_a_place_that_refuses_to_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for those whom nothing stops, root among them."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        refused(lambda: make(tmp_path / "a" / "out"), WeightsError, "Permission denied", str(tmp_path / "a" / "out"))
        refused(lambda: make(tmp_path / "out"), WeightsError, "Permission denied")
    assert names(tmp_path) == set()


def test_too_little_room_is_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 0, 2 * 10**9))
    check_space(tmp_path, 2 * 10**9, "It")
    refused(lambda: check_space(tmp_path, 2 * 10**9 + 10**7, "It"), WeightsError, "It takes 2.01 GB", "2.00 GB free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**10, 0, 10**6))
    out = fill(tmp_path / "out")
    refused(lambda: convert(GOLDEN / "window", out, force=True), WeightsError, "The new model takes", "0.00 GB free")
    assert content(out) == FILES
    refused(lambda: convert(GOLDEN / "window", tmp_path / "a" / "b"), WeightsError, "free")
    assert names(tmp_path) == {"out"}


def test_a_file_that_the_disk_does_not_take(tmp_path: Path) -> None:
    """The kernel's own error, on every system, from a limit on the size of files."""
    out = fill(tmp_path / "out")
    code = f"""
import resource, signal
import mistral_mlx.conversion
from mistral_mlx.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for out in ({str(out)!r}, {str(tmp_path / "a" / "b")!r}):
    print(main(["convert", {str(GOLDEN / "window")!r}, "-o", out, "--force"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "2\n2\n", done.stderr
    assert "cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 4
    assert content(out) == FILES
    assert names(tmp_path) == {"out"}


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system of its own")
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """A real ENOSPC on a small file system, whose room is misjudged as another writer could."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    code = f"""
import os, shutil, subprocess
from pathlib import Path
def mount(options): subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", {str(tmp_path)!r}], check=True)
mount("size=160k")
room = shutil.disk_usage("/")._replace(free=10**12)
shutil.disk_usage = lambda _: room
from mistral_mlx.cli import main
place = Path({str(tmp_path)!r})
(place / "out").mkdir()
(place / "out" / "config.json").write_text("old")
argv = ["convert", {str(GOLDEN / "window")!r}, "-o", str(place / "out"), "--force"]
print(main(argv), sorted(map(str, place.rglob("*"))) == [str(place / "out"), str(place / "out" / "config.json")])
print((place / "out" / "config.json").read_text())
mount("remount,size=64m")
print(main([*argv, "--json"]) == 0 and os.listdir(place) == ["out"])
"""
    command = ["unshare", "-rm", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    first, second, *_, last = done.stdout.splitlines() or ["", "", ""]
    assert (first, second, last) == ("2 True", "old", "True"), done.stdout + done.stderr
    assert "cannot be written" in done.stderr


# ---- kill -9 and Ctrl-C -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 60 MB, which takes as long to convert as Python takes to start."""
    config = ModelConfig(
        hidden_size=512,
        intermediate_size=1792,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=1024,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=64,
        tie_word_embeddings=False,
        eos_token_ids=(2,),
    )
    folder = tmp_path_factory.mktemp("large") / "model"
    folder.mkdir()
    mx.random.seed(7)
    tensors = {n: mx.random.normal(s).astype(mx.bfloat16) for n, s in expected_shapes(config).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps(config.to_hf("mistral")))
    return folder


Undisturbed = tuple[dict[str, str], float]


def hashes(folder: Path) -> dict[str, str]:
    """Of the weights and of what describes them, once the folder is seen to hold a model."""
    assert open_checkpoint(folder).tensors
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


def start(source: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [*SCRIPT, str(source), "-o", str(out), *OPTIONS, *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What becomes of it, and how long that takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    began = time.monotonic()
    _, errors = start(large, out).communicate(timeout=120)
    took = time.monotonic() - began
    assert not errors
    return hashes(out), took


def moments(count: int, took: float) -> list[float]:
    """Spread at random over the whole run, its beginning and its very end among them."""
    chance = random.Random(count)
    return [took * 1.05 * (i + chance.random()) / count for i in range(count)]


def kill(source: Path, out: Path, delay: float, *more: str) -> bool:
    """Kill a conversion after so many seconds; whether it had ended by itself."""
    process = start(source, out, *more)
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=60)
    return process.returncode == 0


def finish(out: Path) -> None:
    """What the next conversion does first, which then fails."""
    with pytest.raises(ZeroDivisionError), workspace(out, force=True):
        raise ZeroDivisionError


def kill_new(large: Path, undisturbed: Undisturbed, place: Path, count: int) -> None:
    expected, took = undisturbed
    for delay in moments(count, took):
        out = place / "out"
        ended = kill(large, out, delay)
        if out.exists():
            assert hashes(out) == expected, delay
        else:
            assert not ended, delay
        finish(out)
        assert names(place) <= {"out"}
        if out.exists():
            shutil.rmtree(out)
    assert kill(large, place / "out", took * 3 + 5)
    assert hashes(place / "out") == expected


def kill_replacing(large: Path, undisturbed: Undisturbed, place: Path, count: int) -> None:
    expected, took = undisturbed
    out = place / "out"
    shutil.copytree(GOLDEN / "window", out)
    old = hashes(out)
    for delay in moments(count, took):
        ended = kill(large, out, delay, "--force")
        assert not ended or hashes(out) == expected, delay
        assert out.exists() or (place / ".out.replaced").exists(), delay
        finish(out)
        assert hashes(out) in (old, expected), delay
        assert names(place) == {"out"}
        if hashes(out) != old:
            shutil.rmtree(out)
            shutil.copytree(GOLDEN / "window", out)


def test_killed_at_four_moments_it_leaves_all_or_nothing(large: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    kill_replacing(large, undisturbed, tmp_path, 4)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_leaves_all_or_nothing(
    large: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    kill_new(large, undisturbed, tmp_path, 20)


@pytest.mark.slow
def test_killed_at_twenty_moments_a_replacement_loses_nothing(
    large: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    kill_replacing(large, undisturbed, tmp_path, 20)


@pytest.mark.parametrize("force", [False, True])
def test_ctrl_c_says_one_line_and_leaves_nothing(force: bool, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    if force:
        fill(out)
    process = start(large, out, *(["--force"] if force else []))
    deadline = time.monotonic() + 60
    while not (out.parent / ".out.partial" / "new" / "config.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "mistral-mlx: stopped.\n"
    assert content(tmp_path) == ({f"a/out/{name}": data for name, data in FILES.items()} if force else {})
    assert names(tmp_path) == ({"a"} if force else set())
