"""The examples of how the server is deployed: what they say is what the command takes."""

from __future__ import annotations

import argparse
import json
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mistral_mlx import cli, server
from mistral_mlx.server.connections import _OTHER_FILES, _TOLD
from mistral_mlx.server.settings import Settings
from tests.server.conftest import Running

ROOT = Path(__file__).parents[2]
DEPLOY = Path(server.__path__[0]) / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")


@pytest.fixture
def agent() -> dict[str, Any]:
    """The launchd example."""
    return plistlib.loads((DEPLOY / "org.mistral-mlx.serve.plist").read_bytes())


def parsed(command: list[str]) -> argparse.Namespace:
    """A command line as the command itself reads it."""
    return cli._parser().parse_args(command)


def instruction(name: str) -> str:
    """What follows a word of the Dockerfile."""
    (found,) = re.findall(rf"^{name} (.*)", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    return found


def test_launchd_starts_it(agent: dict[str, Any]) -> None:
    program, *arguments = agent["ProgramArguments"]
    assert Path(program).is_absolute()  # launchd knows no PATH
    options = parsed(arguments)
    assert options.model == "7b"
    assert agent["ExitTimeOut"] > options.drain_s
    assert agent["SoftResourceLimits"]["NumberOfFiles"] >= Settings.max_connections + _OTHER_FILES + _TOLD


def test_a_container_starts_it_with_the_options_that_are_given() -> None:
    program, *arguments = json.loads(instruction("ENTRYPOINT"))  # a list, so SIGTERM reaches it and no shell
    assert program == "mistral-mlx"
    (run,) = re.findall(r"docker run (.*) mistral-mlx (.*)", DOCKERFILE)
    options = parsed([*arguments, *run[1].split()])
    assert (options.model, options.host, options.port) == ("7b", "0.0.0.0", int(instruction("EXPOSE")))
    assert f"-p {options.port}:{options.port}" in run[0]
    assert int(re.findall(r"--stop-timeout (\d+)", run[0])[0]) > Settings.drain_s


def test_a_container_gets_all_that_is_installed() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in allowed)
    assert allowed == {"mistral_mlx", "tui", "pyproject.toml", "README.md", "LICENSE"}


def test_the_health_check_tells_a_server_from_none(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    python, flag, code = json.loads(instruction("HEALTHCHECK").partition(" CMD ")[2])
    assert (python, flag) == ("python", "-c")
    here = code.replace(f":{instruction('EXPOSE')}/", f":{running.port}/")
    assert here != code

    def healthy() -> bool:
        return subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode == 0

    assert healthy()
    monkeypatch.setattr(running.engine, "draining", True)
    assert not healthy()


def test_nginx_has_the_limits_of_the_server() -> None:
    limits = dict(re.findall(r"^ *(\w+) (\d+)[ms];", NGINX, re.MULTILINE))
    assert int(limits["client_max_body_size"]) * 2**20 == Settings.max_body
    assert int(limits["client_body_timeout"]) == Settings.body_s
    assert int(limits["keepalive_timeout"]) < Settings.idle_s
    assert f":{parsed(['serve', '-m', '7b']).port};" in NGINX


def test_every_option_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    there = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z-]+", NGINX)) <= there
    assert "--drain" in DOCKERFILE
    assert "--drain" in there


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_reads_it(tmp_path: Path) -> None:
    alone = re.sub(r"^ *(listen 443 ssl|ssl_\w+ .*);", "", NGINX, flags=re.MULTILINE)  # there is no certificate
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{alone}\n}}\n")
    command = ["nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "syntax is ok" in done.stderr, done.stderr
