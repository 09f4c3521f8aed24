"""Modules of people are found by their names: registered, out of a file, or out of an installed package."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bimo import ModelSpec, TrainingSettings, UserError, load, new, register
from bimo.cli import main
from bimo.core.registry import REGISTRIES, Registry, import_modules
from bimo.tokenizer import Tokenizer

SMALL = [
    "--tokenizer.vocab_size", "300", "--model.n_layers", "1", "--model.n_heads", "2", "--model.d_model", "32",
    "--model.context_length", "32", "--training.batch_size", "4", "--training.steps", "3",
    "--training.warmup_steps", "1", "--training.precision", "fp32", "--data.validation_share", "0.1",
]  # fmt: skip
PARTS = '''
"""One part of each kind, made from those of the house."""
import bimo
from bimo.model.attention import Attention
from bimo.model.feedforward import Plain
from bimo.model.layers import RMSNorm
from bimo.model.positions import NoPositions
from bimo.training import cross_entropy

@bimo.register("attention", "halved")
class Halved(Attention):
    def forward(self, x, ctx):
        return super().forward(x, ctx) / 2

@bimo.register("feedforward", "squared_relu")
class SquaredReLU(Plain):
    @staticmethod
    def activate(x):
        return x.relu().square()

@bimo.register("norm", "own_norm")
class OwnNorm(RMSNorm):
    pass

@bimo.register("positions", "nowhere")
class Nowhere(NoPositions):
    pass

@bimo.register("loss", "doubled")
def doubled(logits, targets, weights):
    return 2 * cross_entropy(logits, targets, weights)
'''
RECIPE = """
name: mine
data:
  paths: [text.txt]
model:
  attention: halved
  feedforward: squared_relu
  norm: own_norm
  positions: nowhere
training:
  loss: doubled
"""


@contextmanager
def left_as_before() -> Iterator[None]:
    """What is registered and imported meanwhile is gone afterwards."""
    modules, registered = set(sys.modules), {kind: dict(r.registered) for kind, r in REGISTRIES.items()}
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("parts", "broken", "same", "json_", "bimo_")):
            del sys.modules[name]
    for kind, registry in REGISTRIES.items():
        registry.registered = registered[kind]


@pytest.fixture(autouse=True)
def _each_test_alone() -> Iterator[None]:
    with left_as_before():
        yield


@pytest.fixture
def folder(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, parts and a recipe, in which commands run."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A folder in which the recipe has been trained."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    fill(folder)
    with pytest.MonkeyPatch.context() as patch, left_as_before():
        patch.chdir(folder)
        assert main(["train", "recipe.yaml", *SMALL]) == 0
    return folder


@pytest.fixture
def trained(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and commands run there."""
    monkeypatch.chdir(finished)
    return finished


def fill(folder: Path) -> None:
    (folder / "parts.py").write_text(PARTS)
    (folder / "recipe.yaml").write_text(RECIPE + "modules: [parts.py]\n")


def package(site: Path, name: str, code: str, entries: str) -> None:
    """Install a package into a folder, as pip leaves it there."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entries))
    (site / f"{name}.py").write_text(code)


def python(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own, for which a folder of packages is installed."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2, "a wrong input ends with code 2"
    error = capsys.readouterr().err
    assert "Traceback" not in error, error
    assert error.count("\n") == 1, "in one sentence"
    return error


def test_a_registered_part_is_found_by_its_name_and_listed_after_ours() -> None:
    @register("norm", "mine")
    class Mine: ...

    assert REGISTRIES["norm"].get("mine") is Mine
    assert REGISTRIES["norm"].names()[-1] == "mine"
    assert ModelSpec(norm="mine").norm == "mine", "and settings accept it"


@pytest.mark.parametrize("name", ["multi_head", "mult_head", "os:system", ""])
def test_settings_accept_known_names_only_and_say_the_nearest_and_the_way(name: str) -> None:
    if name == "multi_head":
        assert ModelSpec(attention=name), "the control"
        return
    with pytest.raises(UserError, match=r"attention must be one of 'multi_head', is .* --modules") as refused:
        ModelSpec(attention=name)
    assert ("did you mean 'multi_head'" in str(refused.value)) == (name == "mult_head"), "only where it is near"


def test_an_unknown_loss_is_told_by_the_training_settings() -> None:
    with pytest.raises(UserError, match=r"loss must be one of 'cross_entropy', .*, is 'crossentropy' \(did you mean"):
        TrainingSettings(loss="crossentropy")


def test_an_unknown_kind_is_told() -> None:
    with pytest.raises(UserError, match=r"unknown kind 'atention' \(did you mean 'attention'"):
        register("atention", "mine")


def test_a_name_of_the_house_cannot_be_taken() -> None:
    with pytest.raises(UserError, match="bimo already has a norm module called 'rmsnorm'"):
        register("norm", "rmsnorm")(object)
    assert REGISTRIES["norm"].get("rmsnorm").__module__ == "bimo.model.layers", "it is still ours"


def test_a_part_can_be_registered_again_from_where_it_is_but_not_from_another_file(tmp_path: Path) -> None:
    (tmp_path / "same_name.py").write_text('import bimo\nbimo.register("norm", "mine")(type("Mine", (), {}))\n')
    for _ in range(2):  # as a cell of a notebook is run again
        register("norm", "mine")(type("Mine", (), {"__module__": __name__}))
    with pytest.raises(UserError, match=r"same_name\.py, line 2: .*test_registry\.py already has a norm .* 'mine'"):
        import_modules([str(tmp_path / "same_name.py")])


def test_a_recipe_names_a_file_whose_parts_are_trained_and_saved(trained: Path) -> None:
    first = json.loads((trained / "runs/mine/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > 1.5 * math.log(300), "the loss of the file is twice ours"
    config = json.loads((trained / "runs/mine/model/config.json").read_text())
    assert config["model_type"] == "bimo", "no other tool is told that it could read this"
    assert [config["bimo"][kind] for kind in ("attention", "norm", "positions")] == ["halved", "own_norm", "nowhere"]


def test_a_model_with_parts_writes_when_their_file_is_named(trained: Path) -> None:
    assert main(["generate", "runs/mine", "the", "--max_tokens", "3", "--modules", "[parts.py]"]) == 0


def test_a_run_with_parts_is_resumed_with_them(trained: Path) -> None:
    assert main(["train", "--resume", "runs/mine", "--training.steps", "4"]) == 0
    config = json.loads((trained / "runs/mine/model/config.json").read_text())
    assert config["bimo"]["attention"] == "halved"


def test_a_model_whose_part_is_not_registered_says_how_to_name_it(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    import_modules([str(tmp_path / "parts.py")])
    new(ModelSpec(attention="halved", n_layers=1, n_heads=2, d_model=32), tokenizer).save(tmp_path / "model")
    assert load(tmp_path / "model").model.spec.attention == "halved", "the control"
    del REGISTRIES["attention"].registered["halved"]
    error = error_of(capsys, "generate", str(tmp_path / "model"), "x")
    assert "is 'halved'; one of your own is known as soon as --modules names its file" in error, error


@pytest.mark.parametrize("name", ["evil", "evil:Part", "evil.Part", "evil.py", "../evil.py"])
def test_a_name_out_of_a_file_never_imports_anything(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    new(ModelSpec(n_layers=1, n_heads=2, d_model=32), tokenizer).save("model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["bimo"]["attention"], config["model_type"] = name, "bimo"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="attention must be one of"):
        load("model")
    with pytest.raises(SystemExit, match="it was run"):
        import_modules(["evil.py"])  # the control: only a file that the user names is run


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import bimo\n\nx = (\n", "broken.py, line 3: cannot be imported (SyntaxError"),
        ("x = 1\ny = x / 0\n", "broken.py, line 2: cannot be imported (ZeroDivisionError: division by zero)"),
        ("\nimport no_such_package\n", "broken.py, line 2: cannot be imported (ModuleNotFoundError: No module named"),
        (
            "import bimo\nbimo.register('norms', 'x')\n",
            "broken.py, line 2: unknown kind 'norms' (did you mean 'norm'?)",
        ),
        ("def f():\n    raise OSError\nf()\n", "broken.py, line 2: cannot be imported (OSError"),
    ],
)
def test_a_broken_file_is_told_with_its_line(
    folder: Path, code: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text(code)
    error = error_of(capsys, "train", "recipe.yaml", "--modules", "[broken.py]", *SMALL)
    assert f"bimo: {message}" in error, error
    assert "broken" not in sys.modules, "nothing half-made stays"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py", "nowhere.py: no such file"),
        ("no_such_package.parts", "no module 'no_such_package.parts'"),
        ("broken_too", "broken_too, line 2: cannot be imported (ZeroDivisionError"),
    ],
)
def test_a_module_that_cannot_be_had_is_told(
    folder: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken_too.py").write_text("\n1 / 0\n")
    monkeypatch.syspath_prepend(str(folder))
    assert message in error_of(capsys, "train", "recipe.yaml", "--modules", f"[{name}]", *SMALL)


def test_files_of_the_same_name_are_both_run_and_each_once(tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "parts.py").write_text(f"import bimo\nbimo.register('norm', 'of_{part}')(object())\n")
    files = [str(tmp_path / part / "parts.py") for part in ("a", "b")]
    import_modules(files)
    first = REGISTRIES["norm"].get("of_a")
    import_modules(files)
    assert REGISTRIES["norm"].get("of_a") is first, "not run again"
    assert REGISTRIES["norm"].get("of_b"), "the second is not taken for the first"


def test_a_file_that_is_called_like_a_module_of_python_leaves_that_alone(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("import bimo\nbimo.register('norm', 'of_json')(object())\n")
    import_modules([str(tmp_path / "json.py")])
    assert "of_json" in REGISTRIES["norm"].names()
    assert sys.modules["json"] is json, "Python's own stays"


PACKAGE = """
import bimo
from bimo.model.attention import Attention
from bimo.training import cross_entropy

@bimo.register("attention", "packaged")  # a module may register itself and be an entry point
class Packaged(Attention):
    pass

def tripled(logits, targets, weights):
    return 3 * cross_entropy(logits, targets, weights)
"""


def test_parts_of_installed_packages_are_used_from_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = """
        [bimo.attention]
        packaged = bimo_extra:Packaged
        multi_head = bimo_extra:Packaged
        [bimo.loss]
        tripled = bimo_extra:tripled
    """
    package(folder / "site", "bimo_extra", PACKAGE, entries)
    (folder / "recipe.yaml").write_text(
        "data: {paths: [text.txt]}\nmodel: {attention: packaged}\ntraining: {loss: tripled}\n"
    )
    done = python(folder, folder / "site", "-m", "bimo.cli", "train", "recipe.yaml", *SMALL)
    assert done.returncode == 0, done.stderr
    first = json.loads((folder / "runs/run/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > 2.5 * math.log(300), "the loss of the package is three times ours"
    assert "is 'packaged'" in error_of(capsys, "train", "recipe.yaml", *SMALL), "the control: here it is not installed"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of norms beside a package that cannot be imported and one that lacks what it offers."""
    package(tmp_path, "bimo_broken", "import no_such_thing\n", "[bimo.norm]\nbad = bimo_broken:Norm\n")
    package(tmp_path, "bimo_empty", "", "[bimo.norm]\nabsent = bimo_empty:Norm\nours = bimo_empty:Norm\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry("norm", {"ours": "bimo.model.layers:RMSNorm"})


def test_a_package_is_not_imported_before_it_is_asked_for(installed: Registry) -> None:
    assert installed.names() == ["ours", "absent", "bad"]
    assert not {"bimo_broken", "bimo_empty"} & sys.modules.keys()


def test_a_package_cannot_take_the_place_of_a_part_of_ours(installed: Registry) -> None:
    assert installed.get("ours").__module__ == "bimo.model.layers"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "bad",
            "package 'bimo_broken', which cannot be imported (ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        ("absent", "package 'bimo_empty', which cannot be imported (AttributeError: module 'bimo_empty' has no"),
    ],
)
def test_a_package_that_fails_is_named(installed: Registry, name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        installed.get(name)


def test_the_name_of_a_packages_part_cannot_be_taken(installed: Registry) -> None:
    assert installed.refusal("bad", object) == "the package 'bimo_broken'"
    assert installed.refusal("free", object) == "", "the control"


@pytest.mark.parametrize(
    ("kind", "name"), [("loss", 5), ("loss", ""), ("loss", "mine(a=1)"), (5, "mine"), ("loss", None)]
)
def test_a_name_that_is_none_is_refused(kind: str, name: str) -> None:
    with pytest.raises(UserError, match=r"must be a text|unknown kind"):
        register(kind, name)
