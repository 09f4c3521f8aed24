"""What a verification found, and how it is kept: one line, a JSON certificate, and a page for people."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bimo.core.artifacts import write_text
from bimo.core.errors import UserError
from bimo.core.json_files import finite

_REFERENCES = ("NumPy", "transformers", "llama.cpp")
"""How the names of those begin that share no code with the model."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two results may lie apart.

    Attributes:
        allowed: The largest difference.
        measure: What the difference is.
        why: Why so much and no more.
    """

    allowed: float
    measure: str
    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison.

    Attributes:
        check: What was compared; a key of the certificate's tolerances up to the first comma.
        reference: With what.
        difference: The worst one, in the tolerance's measure; infinite where a result is not finite or has no twin.
        allowed: The largest that passes.
        tensor: Where the worst one sits; of several that differ too much, the first in order of computation.
        position: The token's place in its row, -1 where that means nothing.
        note: More words, for example what a comparison could not reach.
        left_out: It could not be made; the note says why.
    """

    check: str
    reference: str
    difference: float
    allowed: float
    tensor: str = ""
    position: int = -1
    note: str = ""
    left_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether it lies within the tolerance; NaN does not."""
        return self.difference <= self.allowed

    @property
    def layer(self) -> int | None:
        """The layer that the tensor belongs to, counted from 0."""
        parts = self.tensor.split(".")
        return int(parts[1]) if len(parts) > 1 and parts[0] == "layers" and parts[1].isdigit() else None

    @property
    def place(self) -> str:
        """Tensor and position in words."""
        where = self.tensor
        return f"{where}, position {self.position}" if self.position >= 0 else where

    def __str__(self) -> str:
        if self.left_out:
            return f"--  {self.check} against {self.reference}: left out, {self.note}"
        mark = "ok  " if self.ok else "BAD "
        where = f" at {self.place}" if self.tensor else ""
        note = f"; {self.note}" if self.note else ""
        return f"{mark}{self.check} against {self.reference}: {self.amount}{where}{note}"

    @property
    def amount(self) -> str:
        """The difference beside what is allowed, in words."""
        if self.left_out:
            return "left out"
        if self.difference == 0:
            return "no difference"
        return (
            f"{self.difference:.1e} of {self.allowed:.0e}" if self.allowed else f"{self.difference:.3g}, none allowed"
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """Everything that was found about one model.

    Attributes:
        model: Its name.
        created: When, ISO 8601.
        versions: Of bimo, torch, and the references.
        spec: Its shape.
        weights: sha256 of each weight's bytes as float32, by name.
        files: sha256 of each file that it was read from, by name.
        tolerances: By kind of check.
        findings: The comparisons, in the order in which they were made.
    """

    model: str
    created: str
    versions: dict[str, str]
    spec: dict[str, Any]
    weights: dict[str, str]
    files: dict[str, str]
    tolerances: dict[str, Tolerance]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every comparison passed, and there was one."""
        return bool(self.made) and all(finding.ok for finding in self.made)

    @property
    def made(self) -> list[Finding]:
        """The comparisons that could be made."""
        return [finding for finding in self.findings if not finding.left_out]

    @property
    def with_a_reference(self) -> bool:
        """Whether somebody else computed the same; all other comparisons are with the model and its own files."""
        return any(finding.reference.startswith(_REFERENCES) for finding in self.made)

    @property
    def worst(self) -> Finding:
        """The first comparison that failed, or else the one that came nearest to failing."""
        failed = next((finding for finding in self.made if not finding.ok), None)
        measured = [f for f in self.made if f.allowed > 0 and not f.check.startswith("export")]
        measured = measured or self.made
        return failed or max(measured, key=lambda finding: finding.difference / (finding.allowed or 1.0))

    @property
    def verdict(self) -> str:
        """The result in one line."""
        if not self.made:
            return "NOTHING COMPARED: every comparison was left out"
        worst = self.worst
        how = f"{worst.check} against {worst.reference}, {worst.amount},"
        if self.ok:
            left_out = len(self.findings) - len(self.made)
            others = f", {left_out} left out" if left_out else ""
            holds = f"{len(self.made)} comparisons hold{others}"
            if not self.with_a_reference:
                return f"EQUAL TO ITSELF: {holds}, but nothing was compared with a reference, so nothing is proven"
            return f"VERIFIED: {holds}; the nearest to its limit: {how} at {worst.place}"
        bad = sum(not finding.ok for finding in self.made)
        return f"NOT EQUAL: {bad} of {len(self.made)} comparisons fail; first {how} at {worst.place}"

    def save(self, folder: Path) -> None:
        """Write certificate.json and certificate.html into a folder, which is made; each is whole or not there.

        Raises:
            UserError: The folder cannot be written to.
        """
        findings = [{**asdict(f), "layer": f.layer, "ok": f.ok} for f in self.findings]
        content = {"verdict": self.verdict, "ok": self.ok, **asdict(self), "findings": findings}
        text = json.dumps(finite(content), indent=2, ensure_ascii=False)
        _write(folder / "certificate.json", text)
        _write(folder / "certificate.html", self._page())

    def _page(self) -> str:
        rows = "".join(
            f'<tr class="{"ok" if f.ok else "bad"}"><td>{_text(f.check)}</td><td>{_text(f.reference)}</td>'
            f"<td>{_text(f.amount)}</td><td>{_text(f.place)}</td><td>{_text(f.note)}</td></tr>"
            for f in self.findings
        )
        limits = "".join(
            f"<tr><td>{_text(name)}</td><td>{t.allowed:.0e}</td><td>{_text(t.measure)}</td><td>{_text(t.why)}</td></tr>"
            for name, t in self.tolerances.items()
        )
        hashes = "".join(
            f"<tr><td>{_text(name)}</td><td><code>{digest}</code></td></tr>"
            for name, digest in {**self.files, **self.weights}.items()
        )
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return _PAGE.format(
            title=_text(self.model),
            verdict=_text(self.verdict),
            state="ok" if self.ok else "bad",
            about=_text(f"{self.created}; {versions}"),
            rows=rows,
            limits=limits,
            hashes=hashes,
            spec=_text(json.dumps(self.spec, indent=2)),
        )


def check_output(folder: Path) -> None:
    """Make the folder of a certificate and write a file into it, before the work of minutes is done in vain.

    Raises:
        UserError: The folder cannot be written to.
    """
    probe = folder / ".certificate.probe"
    _write(probe, "")
    probe.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    """As `write_text`; a name that no file can have is the user's to mend, too."""
    try:
        write_text(path, text)
    except ValueError as error:  # a zero byte, half of a surrogate pair
        raise UserError(f"no name of a file ({error})", where=repr(str(path)), mend="Choose another name.") from error


def _text(value: str) -> str:
    return html.escape(value)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: certificate</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; width: 100%; margin: 1em 0 }}
td, th {{ text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; vertical-align: top }}
tr.bad td {{ background: #fdd }}
p.verdict {{ padding: 1em; border-radius: .4em }} p.ok {{ background: #dfd }} p.bad {{ background: #fdd }}
code {{ font-size: 12px; word-break: break-all }} summary {{ cursor: pointer; font-weight: 600 }}
</style></head><body>
<h1>{title}</h1><p class="verdict {state}">{verdict}</p><p>{about}</p>
<table><tr><th>compared</th><th>with</th><th>worst difference, of what is allowed</th><th>where</th><th></th></tr>
{rows}</table>
<details open><summary>What is allowed, and why</summary>
<table><tr><th>check</th><th>allowed</th><th>measure</th><th>why</th></tr>{limits}</table></details>
<details><summary>Hashes (sha256)</summary><table>{hashes}</table></details>
<details><summary>Shape</summary><pre>{spec}</pre></details>
</body></html>
"""
