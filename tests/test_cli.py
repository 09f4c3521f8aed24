"""Every command, as a person runs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bimo.cli import VERBS, main

SMALL = [
    "--tokenizer.vocab_size", "400", "--model.n_layers", "1", "--model.n_heads", "2", "--model.d_model", "32",
    "--model.context_length", "32", "--training.batch_size", "4", "--training.warmup_steps", "2",
    "--training.precision", "fp32", "--data.validation_share", "0.1",
]  # fmt: skip


def run(folder: Path, *arguments: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "bimo.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


def run_here(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported everything: seconds less for each command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A folder in which a run was trained by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    (folder / "recipe.yaml").write_text("name: first\ndata:\n  paths: [text.txt]\ntraining:\n  steps: 12\n")
    done = run(folder, "train", "recipe.yaml", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


def test_help_shows_the_life_cycle_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"  {verb} ") for verb in tuple(VERBS)]
    assert places == sorted(places), "in the order of a model's life"


def test_train_leaves_a_whole_run_directory(trained: Path) -> None:
    folder = trained / "runs" / "first"
    names = ["run.yaml", "tokenizer.json", "metrics.jsonl", "events.jsonl", "manifest.json", "model/config.json"]
    missing = [name for name in [*names, "model/model.safetensors", "checkpoints"] if not (folder / name).exists()]
    assert not missing, missing
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 1, "the first step is logged"
    assert "bits_per_byte" in lines[-1], "and the last evaluation"


def test_generate_writes_the_same_text_for_the_same_seed(trained: Path) -> None:
    outputs = [
        runner(trained, "generate", "runs/first", "the cat", "--seed", "3", "--max_tokens", "9")
        for runner in (run, run_here)
    ]
    assert outputs[0].returncode == 0, outputs[0].stderr
    assert outputs[0].stdout == outputs[1].stdout, "the seed settles it"


def test_chat_answers_lines_from_a_pipe(trained: Path) -> None:
    done = run(trained, "chat", "runs/first", "--max_tokens", "4", stdin="hello\n\n")
    assert done.returncode == 0, done.stderr


def test_doctor_examines_a_model(trained: Path) -> None:
    done = run_here(trained, "doctor", "--model", "runs/first")
    assert done.returncode == 0, done.stdout
    assert "causality" in done.stdout, "it says what it looked at"


def test_doctor_measures_the_machine(tmp_path: Path) -> None:
    done = run_here(tmp_path, "doctor", "--seconds", "0.2")
    assert "GFLOP/s" in done.stdout, done.stderr
    assert "GB/s" in done.stdout, done.stdout


def test_export_writes_a_file_that_the_other_commands_open(trained: Path) -> None:
    done = run_here(trained, "export", "runs/first", "out/first.gguf", "--format", "Q8_0")
    assert done.returncode == 0, done.stderr
    assert "Q8_0" in done.stdout.splitlines()[0], "what is inside"
    assert "ok  export, Q8_0" in done.stdout, "it was opened again and compared"
    written = run_here(trained, "generate", "out/first.gguf", "the cat", "--seed", "3", "--max_tokens", "4")
    assert written.returncode == 0, written.stderr


def test_bench_prints_a_table_and_writes_figures(trained: Path) -> None:
    done = run_here(trained, "bench", "runs/first", "--seconds", "2", "--peers", "[]", "--output", "figures.json")
    assert done.returncode == 0, done.stderr
    assert "| decode, 1 stream of 8, tokens/s |" in done.stdout
    assert json.loads((trained / "figures.json").read_text())["rows"][0]["figures"]["bimo"] > 0


def test_verify_ends_with_a_verdict_and_a_page(trained: Path) -> None:
    done = run_here(trained, "verify", "runs/first", "--references", "[numpy]", "--exports", "[hf]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nVERIFIED: " in done.stdout, done.stdout
    assert (trained / "verify" / "first" / "certificate.html").exists(), "the page lies where it says"


def test_prepare_then_train_finds_the_tokens(trained: Path) -> None:
    done = run_here(trained, "prepare", "recipe.yaml", "--name", "second", *SMALL)
    assert done.returncode == 0, done.stderr
    before = (trained / "runs/second/tokens/train/source-0/source-0-00000.tokens").stat().st_mtime_ns
    done = run_here(trained, "train", "recipe.yaml", "--name", "second", *SMALL)
    assert done.returncode == 0, done.stderr
    after = (trained / "runs/second/tokens/train/source-0/source-0-00000.tokens").stat().st_mtime_ns
    assert before == after, "the shards are not made twice"


def test_an_existing_run_is_not_overwritten(trained: Path) -> None:
    done = run_here(trained, "train", "recipe.yaml", *SMALL)
    assert done.returncode == 2, done.stdout
    assert "bimo train --resume" in done.stderr, "the mend is named"


def test_interrupted_training_says_how_to_go_on_and_does(trained: Path) -> None:
    arguments = ["train", "recipe.yaml", "--name", "broken", *SMALL, "--training.steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bimo.cli", *arguments], cwd=trained, stdout=subprocess.PIPE, text=True
    )
    metrics = trained / "runs/broken/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)  # the first step has to be made before the signal is sent
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "bimo train --resume runs/broken" in output, "it says how to go on"
    step = max(int(path.name[5:]) for path in (trained / "runs/broken/checkpoints").iterdir())
    done = run(trained, "train", "--resume", "runs/broken", "--training.steps", str(step + 3))
    assert done.returncode == 0, done.stderr
    assert f"at step {step}" in done.stdout, "it goes on where it stopped"


def test_standard_input_can_be_trained_on(tmp_path: Path, texts: list[str]) -> None:
    done = run(tmp_path, "train", "--data.paths", "[-]", "--training.steps", "2", *SMALL, stdin="\n".join(texts))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--training.learning_rat", "1"], "did you mean 'training.learning_rate'"),
        (["train", "--learning_rate", "1"], "did you mean 'training.learning_rate'"),
        (["train", "--training.steps", "many"], "training.steps"),
        (["train", "--model.norm", "batchnorm"], "model: norm must be one of"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["train"], "no text was named"),
        (["train", "--data.paths", "[nowhere.txt]"], "nowhere.txt"),
        (["train", "--resume", "runs/none"], "runs/none"),
        (["train", "--training.device", "tpu", "--data.paths", "[text.txt]"], "device 'tpu'"),
        (["generate", "runs/none", "x"], "runs/none"),
        (["demo", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "nowhere"),
        (["verify", "runs/first", "--references", "[jax]"], "no reference 'jax'"),
        (["verify", "runs/first", "--exports", "[Q9]"], "no format 'Q9'"),
        (["export", "runs/first", "x.gguf", "--format", "Q4_KM"], "did you mean 'Q4_K'"),
        (["export", "runs/first", "x", "--dtype", "float8"], "float8"),
        (["export", "runs/first", "."], "."),
    ],
)
def test_wrong_input_is_one_sentence_and_code_2(
    arguments: list[str],
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("COLUMNS", "200")
    if arguments[:1] == ["train"] and "tpu" in arguments:
        arguments = [*arguments, "--name", "tpu", *SMALL]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert "Traceback" not in error, error


def test_unknown_key_in_a_recipe_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training:\n  batchsize: 3\n")
    assert main(["train", str(recipe)]) == 2
    assert "did you mean 'training.batch_size'" in capsys.readouterr().err


def test_print_config_shows_the_resolved_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--training.learning_rate", "3e-4", "--print_config"])
    assert "learning_rate: 0.0003" in capsys.readouterr().out


def test_demo_runs_on_a_folder_with_broken_files(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    (folder / "b.txt").write_bytes("\n".join(t for t in texts if "猫" in t).encode("utf-16"))
    (folder / "c.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "d.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    done = run(tmp_path, "demo", "mixed", "--seconds", "3")
    assert done.returncode == 0, done.stderr
    assert "c.txt" in done.stdout, "the binary file is named"
    assert "d.jsonl, line 2" in done.stdout, "the broken row is named"
    assert "5-gram" in done.stdout, "the floors are shown"


def test_a_prompt_that_begins_like_a_flag_says_how_it_is_written(trained: Path) -> None:
    wrong = run_here(trained, "generate", "runs/first", "-hello")
    assert wrong.returncode == 2
    assert "bimo generate MODEL -- -hello" in wrong.stderr
    assert run_here(trained, "generate", "runs/first", "--max_tokens", "2", "--", "-hello").returncode == 0
    number = run_here(trained, "generate", "runs/first", "a", "--max_tokens", "-1").stderr
    assert "max_tokens must be at least 1" in number, "a number below 0 is no prompt"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_the_output_is_one_sentence(trained: Path) -> None:
    for arguments in (["generate", "runs/first", "a"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "bimo.cli", *arguments], cwd=trained, stdout=full, stderr=subprocess.PIPE,
                text=True, timeout=120, check=False, env={**os.environ, "PYTHONUNBUFFERED": ""},
            )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert "the output cannot be written" in done.stderr


def test_a_terminal_that_cannot_show_a_character_is_one_sentence(trained: Path) -> None:
    words = ["generate", "runs/first", "一只", "--max_tokens", "20", "--temperature", "2", "--seed"]
    command = [sys.executable, "-m", "bimo.cli", *words]
    for seed in range(5):
        done = subprocess.run(
            [*command, str(seed)], cwd=trained, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        if done.returncode:
            break
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "the output is ascii, which cannot show" in done.stderr


def test_a_bare_name_behind_modules_is_a_list_of_one(trained: Path) -> None:
    (trained / "own.py").write_text("import bimo\n\nprint('it was run')\n")
    done = run(trained, "generate", "runs/first", "a", "--modules", "own.py", "--max_tokens", "2")
    assert done.returncode == 0, done.stderr
    assert "it was run" in done.stdout
    again = run(trained, "generate", "runs/first", "a", '--modules=["own.py"]', "--max_tokens", "2")
    assert "it was run" in again.stdout, "as before"
