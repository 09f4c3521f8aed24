"""What the documents say is there, is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bimo.cli import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [t for t in targets if not (page.parent / t).exists()], "broken links"


def test_commands_of_the_readme_exist() -> None:
    blocks = "\n".join(re.findall(r"```\n(.*?)```", README, flags=re.DOTALL))
    verbs = set(re.findall(r"^bimo (\w+)", blocks, flags=re.MULTILINE))
    targets = set(re.findall(r"^make (\w+)", blocks, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert verbs == set(VERBS), "the README shows every command"
    assert targets, "the README says how to start"
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets), "make knows them"


def test_recipes_of_the_readme_exist() -> None:
    assert all((ROOT / name).exists() for name in re.findall(r"recipes/\w+\.yaml", README)), "recipes"


def test_python_of_the_readme_runs(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code) == 1, "one program"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    exec(compile(code[0].replace("epochs=3", "epochs=1"), "README.md", "exec"), {})
    assert (tmp_path / "my_model" / "config.json").exists(), "the model is saved"


def test_every_file_of_the_house_is_on_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("*Planned*")[0]
    files = [path.name for path in (ROOT / "bimo").rglob("*.py") if path.name != "__init__.py"]
    assert not [name for name in files if name not in page], "files that the page does not name"
