"""`bimo serve` as a person types it: what is wrong is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bimo.cli import main
from bimo.core.errors import UserError
from bimo.flags import Parser
from bimo.serving.keys import read_keys
from bimo.serving.settings import ServeSettings


def test_a_key_is_made_and_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert main(["serve", "--new_key", "anna", "--keys", str(path)]) == 0
    secret = capsys.readouterr().out.strip()
    holder = read_keys(path).holder(b"Bearer " + secret.encode())
    assert holder is not None
    assert holder.name == "anna"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model is named"),
        (["--new_key", "anna"], "Add --keys FILE"),
        (["nothing/there", "--port", "0"], "nothing/there"),
        (["x", "--keys", "nothing/there"], "the keys cannot be read"),
        (["x", "--prot", "1"], "prot"),
        (["x", "--port", "70000"], "port must lie in"),
        (["x", "--host", "no.such.host.invalid"], "cannot listen there"),
        (["x", "--queue_s", "0"], "queue_s"),
        (["x", "--engine.threads", "-1"], "threads"),
        (["x", "--runs", "nothing/there"], "there is no such folder"),
        (["x", "--guard", "[lenght]", "--port", "0"], "lenght"),
        (["x", "--guard", "lenght", "--port", "0"], "lenght"),
        (["x", "--guard", "length", "--guard", "length(most=9)", "--port", "0"], "stands twice"),
        (["x", "--guard", "http://127.0.0.1:1", "--guard", "length"], "the guard runs elsewhere"),
        (["x", "--name", "a", "--name", "b", "--port", "0"], "2 names for 1 models"),
        (["x", "--name", "", "--port", "0"], "a name is empty"),
        (["x", "--adapter", "de", "--port", "0"], "'de' names no adapter"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--name", "a"], ["a"]),
        (["--name", "a", "--name=b"], ["a", "b"]),
        (["--name", "[a, b]"], ["a", "b"]),
        (["--name", "a", "--name", "[b, c]"], ["b", "c"]),
        (["--name", "x", "--port", "0", "--name", "größe=1, 'y'"], ["x", "größe=1, 'y'"]),
    ],
)
def test_a_list_is_written_word_by_word_or_as_one(given: list[str], meant: list[str]) -> None:
    parser = Parser()
    parser.add_argument("--name", type=list[str], default=[])
    parser.add_argument("--port", type=int, default=1)
    assert parser.parse_args(given).name == meant


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "x"]) == 2
    assert 'pip install "bimo[serve]"' in capsys.readouterr().err


def test_help_and_keys_need_neither_torch_nor_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'fastapi', 'uvicorn'): sys.modules[name] = None\n"
        "from bimo.cli import main\n"
        f"assert main(['serve', '--new_key', 'a', '--keys', {str(tmp_path / 'keys')!r}]) == 0\n"
        "main(['serve', '--help'])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "--max_parallel" in found.stdout


def test_settings_say_all_that_is_wrong_at_once() -> None:
    with pytest.raises(UserError) as caught:
        ServeSettings(port=-1, max_parallel=0, answer_s=float("inf"), default_tokens=10_000)
    assert all(name in caught.value.what for name in ("port", "max_parallel", "answer_s", "default_tokens"))
