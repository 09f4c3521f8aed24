"""The page as files: types, policy, copies that browsers keep, names that lead nowhere, words in both languages."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from serving.servers import Running, Serve

from bimo.serving.pages import POLICY, add_pages, static_files

ROOT = Path(__file__).parents[3]
WEB = ROOT / "bimo" / "serving" / "web"
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(WEB.glob("*.js"))}
ROW = re.compile(r'^  "([a-z_.A-Z]+)": \["((?:[^"\\]|\\.)*)", "((?:[^"\\]|\\.)*)"\],$', re.MULTILINE)
WORDS = {key: (english, chinese) for key, english, chinese in ROW.findall(SCRIPTS["words.js"])}


@pytest.fixture
def paged(serve: Serve) -> Running:
    return serve(pages=add_pages)


def test_the_page_and_all_its_files_come_with_their_types(paged: Running) -> None:
    for path, file in {
        "/": static_files()["index.html"],
        **{f"/web/{n}": f for n, f in static_files().items()},
    }.items():
        answer = paged.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == file.content_type
        assert answer.content == file.content


def test_the_policy_lets_nothing_foreign_in(paged: Running) -> None:
    headers = paged.get("/").headers
    assert POLICY in headers["content-security-policy"]
    assert "default-src 'self'" in POLICY
    assert "frame-ancestors 'none'" in POLICY
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"].startswith("nosniff")


def test_a_browser_asks_again_and_gets_nothing_twice(paged: Running) -> None:
    first = paged.get("/web/main.js")
    tag = first.headers["etag"]
    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = paged.get("/web/main.js", headers={"If-None-Match": sent})
        assert again.status_code == 304, sent
        assert not again.content
    assert paged.get("/web/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["../pages.py", "..%2fpages.py", "%2e%2e/pages.py", "..\\pages.py", "main.js%00", "", ".", "none.js", "a/b.js"],
)
def test_no_name_leads_out_of_the_folder(paged: Running, name: str) -> None:
    answer = paged.get(f"/web/{name}")
    assert answer.status_code == 404
    assert "error" in answer.json(), "in the form that all errors have"


def test_files_name_no_other_place() -> None:
    for path in WEB.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"(^|\s)//.*", "", text).replace("https://", "//"), f"{path.name} names an address"
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\()", text), path.name
        assert not re.search(r"<(script|style)>|\son\w+=|\sstyle=", text) or path.suffix != ".html", path.name


def test_every_word_is_there_in_both_languages() -> None:
    lines = [line for line in SCRIPTS["words.js"].splitlines() if re.match(r'^  "', line)]
    assert len(WORDS) == len(lines) > 100, "every row is read, and none twice"
    for key, pair in WORDS.items():
        assert all(text.strip() for text in pair), key
        fields = [sorted(re.findall(r"\{(\w+)\}", text)) for text in pair]
        assert fields[0] == fields[1], f"{key}: both fill in the same"
        foreign = re.search(r"[\u4e00-\u9fff]", pair[1]) or key == "menu.language"
        assert foreign, f"{key}: Chinese is Chinese"


def test_every_word_that_is_used_is_there_and_no_other() -> None:
    prefixes = {key.partition(".")[0] for key in WORDS}
    code = "\n".join(text for name, text in SCRIPTS.items() if name != "words.js")
    used = {found for found in re.findall(r'"([a-z]+\.[a-z_A-Z]+)"', code) if found.partition(".")[0] in prefixes}
    made = re.findall(r"`([a-z]*\$?\{?\w*[.\w]*\}?)\.(\$\{[^}]+\}|\w+)[^`]*`", code)
    patterns = [re.compile(re.sub(r"\\\$\\\{.*?\\\}", r"[\\w]+", re.escape(f"{a}.{b}"))) for a, b in made]
    known = set(WORDS)
    assert not {key for key in used if key not in known and not key.startswith("bimo.")}
    assert not [key for key in known - used if not any(p.fullmatch(key) for p in patterns)], "words nobody uses"


@pytest.mark.slow
def test_a_built_wheel_has_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "-w", str(tmp_path), "--quiet"]
    subprocess.run(command, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"bimo/serving/web/{path.name}" for path in WEB.iterdir()} <= names
