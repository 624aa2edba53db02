"""The rules of the house: who may import whom, what importing costs, what the public names are."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import mistral_mlx as mm

ROOT = Path(__file__).parents[1]
LINT = Path(sysconfig.get_path("scripts")) / "lint-imports"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LINT, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_the_import_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("mistral_mlx/model/cache.py", "import mistral_mlx.weights.names", "Each room knows only those below it"),
        ("mistral_mlx/engine/decode.py", "import mistral_mlx.text.decoder", "Each room knows only those below it"),
        ("mistral_mlx/weights/names.py", "import mistral_mlx.llm", "Each room knows only those below it"),
        ("mistral_mlx/errors.py", "import mistral_mlx.config", "Each room knows only those below it"),
        ("mistral_mlx/homeless.py", "import json", "Each room knows only those below it"),
        ("mistral_mlx/text/decoder.py", "import mistral_mlx.config", "Text knows no model"),
        ("mistral_mlx/config.py", "import mlx.core", "The configuration knows no arrays"),
        ("tui/__init__.py", "import mlx.core", "The terminal chat uses"),
        ("tui/__init__.py", "import mistral_mlx.engine.sampling", "The terminal chat uses"),
        ("mistral_mlx/llm.py", "import tui", "The library knows no screen"),
        ("mistral_mlx/models.py", "import textual", "The library knows no screen"),
    ],
)
def test_a_planted_violation_is_caught(module: str, line: str, contract: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("mistral_mlx", "tui"):
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout
    broken = [row for row in done.stdout.splitlines() if " BROKEN" in row]
    assert any(row.startswith(contract) for row in broken), done.stdout


def test_the_command_may_start_the_terminal_chat(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("mistral_mlx", "tui"):
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / "mistral_mlx/cli/__init__.py").open("a") as file:
        file.write("\nimport tui\n")
    assert lint(tmp_path).returncode == 0


def test_a_bare_import_loads_nothing_and_changes_nothing() -> None:
    state = (
        "import os, resource, signal, threading, warnings, locale\n"
        "state = lambda: (dict(os.environ), os.getcwd(), [resource.getrlimit(r) for r in range(10)],"
        " [signal.getsignal(s) for s in (2, 13, 15)], threading.active_count(), list(warnings.filters),"
        " locale.getlocale())\n"
    )
    code = f"""{state}
import sys
before, modules = state(), set(sys.modules)
import mistral_mlx
assert state() == before
print(*sorted({{m.partition('.')[0] for m in set(sys.modules) - modules}}))
"""
    loaded = set(run(code).split())
    assert "mistral_mlx" in loaded
    assert not loaded & {"mlx", "numpy", "transformers", "mlx_lm", "textual", "fastapi", "tokenizers", "mistral_common"}


def test_a_bare_import_takes_less_than_50_ms() -> None:
    """By Python's own account, the best of five: the rest is other people's load."""
    taken = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import mistral_mlx"], capture_output=True, text=True, check=True
        )
        row = next(line for line in done.stderr.splitlines() if line.endswith("| mistral_mlx"))
        taken.append(int(row.split("|")[1]) / 1000)
    assert min(taken) < 50


def test_help_needs_no_mlx() -> None:
    code = "import sys\nfrom mistral_mlx.cli import main\ntry: main(['generate', '--help'])\nexcept SystemExit: pass\n"
    code += "print('loaded:', *[m for m in ('mlx', 'numpy', 'textual', 'mistral_mlx.llm') if m in sys.modules])"
    assert run(code).splitlines()[-1] == "loaded:"


def test_generating_needs_neither_transformers_nor_mlx_lm() -> None:
    code = "import mistral_mlx as mm, sys\nmm.load('tests/golden/window').generate([3, 4], max_tokens=2)\n"
    code += "print(*[m for m in ('transformers', 'mlx_lm', 'textual', 'torch', 'mistral_common') if m in sys.modules])"
    assert run(code).strip() == ""


def test_public_names_are_sorted_documented_and_complete() -> None:
    assert mm.__all__ == sorted(mm.__all__, key=lambda name: (name != name.upper(), name))
    for name in mm.__all__:
        assert getattr(mm, name).__doc__, name
    assert set(mm.__all__) <= set(dir(mm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mm.nothing  # noqa: B018
    errors = {n for n, v in vars(__import__("mistral_mlx.errors").errors).items() if isinstance(v, type)}
    assert errors - {"Any"} <= set(mm.__all__)


def test_every_module_says_what_it_is() -> None:
    for path in [*ROOT.glob("mistral_mlx/**/*.py"), *ROOT.glob("tui/**/*.py"), *ROOT.glob("tests/**/test_*.py")]:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_a_late_import_after_mlx_warns_once_with_the_remedy() -> None:
    code = (
        "import warnings, json, sys\nimport mlx.core\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import mistral_mlx.model.cache, mistral_mlx.engine.decode, mistral_mlx.weights.names\n"
        "print(json.dumps([str(w.message) for w in caught if 'mlx.core' in str(w.message)]))"
    )
    messages = json.loads(run(code))
    if sys.platform != "linux":
        assert messages == []
        return
    assert len(messages) == 1
    assert "preload_blas" in messages[0]
