"""An exam for the checkup of data: what was put into a clean data set is named with its place, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from data.clean_sets import FORMS
from data.defects import DEFECTS
from data.seeding import Case, Defect

from bimo.core.config import CheckSettings
from bimo.data.checkup import Finding, Report, check

MISSES_ALLOWED = 0.05
SEEDS = range(1, 6)


def checked(case: Case, **settings: object) -> Report:
    return check(case.paths, valid=case.valid, settings=CheckSettings.from_dict({**case.settings, **settings}))


def naming(report: Report, case: Case) -> list[Finding]:
    return [f for f in report.findings if case.is_named(f.kind, f.what, f.file, f.row)]


def alarms(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity != "note"]


@pytest.fixture(scope="module")
def clean_report(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """What the checkup says of a data set without a defect; asked twice, it is the same report."""

    @cache
    def report(form: str, near_duplicates: bool = False, context_length: int = 0) -> Report:
        clean = Defect((form,), lambda draft: None, "")(0, tmp_path_factory.mktemp("clean"))
        return checked(clean, near_duplicates=near_duplicates, context_length=context_length)

    return report


@pytest.mark.parametrize("name", DEFECTS)
def test_a_seeded_defect_is_named_with_its_place(
    name: str, tmp_path: Path, clean_report: Callable[..., Report]
) -> None:
    damaged = DEFECTS[name](0, tmp_path)
    report = checked(damaged)
    assert naming(report, damaged), f"{dict(damaged.places)} hold {name!r}, and the report says {report.findings}"
    found = naming(clean_report(damaged.form, **damaged.settings), damaged)
    assert not found, f"control: the same data set without its defect gives {found}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{}, {"near_duplicates": True}, {"context_length": 4096}], ids=str)
def test_clean_data_raise_no_alarm(form: str, settings: dict[str, int], clean_report: Callable[..., Report]) -> None:
    report = clean_report(form, **settings)
    assert report.ok, f"there is no error in {form}"
    assert not alarms(report), f"{form} is clean, yet the report says {alarms(report)}"


def test_a_report_that_says_nothing_or_another_row_names_no_defect(tmp_path: Path) -> None:
    case = DEFECTS["nul"](0, tmp_path)
    (file, rows), *_ = case.places.items()
    assert rows is not None, "this defect has a row"
    right = Finding("control character", "error", file, max(rows), "it holds U+0000", "Remove it.")
    assert naming(Report([right], {}), case) == [right], "the finding that names it counts"
    wrong = [replace(right, row=max(rows) + 1), replace(right, kind="duplicate", what="it is there twice")]
    wrong.append(replace(right, file=file + ".bak"))
    assert naming(Report(wrong, {}), case) == [], "another row, another reason and another file do not"
    assert naming(Report([], {}), case) == [], "silence does not"


@pytest.mark.slow
def test_nearly_all_seeded_defects_are_named_and_no_clean_data_are(tmp_path: Path) -> None:
    missed, false = [], []
    for seed in SEEDS:
        for name, defect in DEFECTS.items():
            damaged = defect(seed, tmp_path / f"{name} {seed}")
            if not naming(checked(damaged), damaged):
                missed.append((name, seed))
            clean = defect(seed, tmp_path / f"{name} {seed} clean", damaged=False)
            false += [(name, seed, finding) for finding in alarms(checked(clean))]
    assert len(missed) <= MISSES_ALLOWED * len(DEFECTS) * len(SEEDS), f"not named: {missed}"
    assert not false, f"false alarms: {false}"
