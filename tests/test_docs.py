"""What the documents say is there, is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bimo.cli import VERBS
from bimo.core.registry import REGISTRIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MODELS = ROOT / "docs" / "models.md"
DOCS = [
    ROOT / "docs" / name
    for name in (
        "architecture.md",
        "training.md",
        "data.md",
        "cluster.md",
        "parallel.md",
        "scale.md",
        "engine.md",
        "applications.md",
        "evaluation.md",
        "compare.md",
        "tasks.md",
        "serving.md",
        "deployment.md",
        "page.md",
    )
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", MODELS, *DOCS]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [t for t in targets if not (page.parent / t).exists()], "broken links"


def test_commands_of_the_readme_exist() -> None:
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, flags=re.DOTALL))
    verbs = set(re.findall(r"^bimo (\w+)", blocks, flags=re.MULTILINE))
    targets = set(re.findall(r"^make (\w+)", blocks, flags=re.MULTILINE))
    assert verbs == set(VERBS), "the README shows every command"
    assert {"demo", "test"} <= targets, "the README says how to start"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_knows_every_target_that_a_page_names(page: Path) -> None:
    targets = re.findall(r"(?:^|`)make (\w+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not [target for target in targets if not re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_paths_that_a_page_names_exist(page: Path) -> None:
    paths = re.findall(r"\b(?:benchmarks|bimo|docs|examples|recipes|tests)/[\w./]*\w", page.read_text(encoding="utf-8"))
    assert not [path for path in paths if not (ROOT / path).exists()], "paths that are not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_of_a_page_compiles(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        compile(block, page.name, "exec")


def test_python_of_the_readme_runs(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code) == 1, "one program"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    exec(compile(code[0].replace("epochs=3", "epochs=1"), "README.md", "exec"), {})
    assert (tmp_path / "my_model" / "config.json").exists(), "the model is saved"


def test_python_of_the_models_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRIES["feedforward"], "registered", {})  # what the page registers is gone afterwards
    for block in re.findall(r"```python\n(.*?)```", MODELS.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, "models.md", "exec"), {"__name__": "models"})
    assert "squared_relu" in REGISTRIES["feedforward"].registered, "what the page registers is there"


def test_the_models_page_names_every_family() -> None:
    from bimo.interop.families import FAMILIES

    plain = re.sub(r"[^a-z0-9]", "", MODELS.read_text(encoding="utf-8").lower())
    names = [family.model_type.removesuffix("_text").replace("_", "") for family in FAMILIES]
    assert not [name for name in names if name not in plain], "families that the page does not name"


def test_every_file_of_the_house_is_on_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("*Planned*")[0]
    files = [path.name for path in (ROOT / "bimo").rglob("*.py") if path.name != "__init__.py"]
    assert not [name for name in files if name not in page], "files that the page does not name"


def test_every_file_on_the_architecture_page_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    before, _, planned = page.partition("*Planned*")
    named = set(re.findall(r"\b\w+\.py\b", before + planned.partition("\n\n")[2]))
    there = {path.name for folder in ("bimo", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert named - there == {"utils.py"}, "the page names it to forbid it; planned files belong under *Planned*"
