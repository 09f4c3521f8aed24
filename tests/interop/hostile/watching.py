"""Opens files in a process of its own, and says of each what came of it, how long it took and what memory it filled.

A crash or an endless wait there is a finding and not the end of the tests. `OPENERS` holds what is watched, and two
careless readers that must be caught.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_WAIT_S = 60
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Outcome:
    """What came of opening a file.

    Attributes:
        kind: "ran", or the class of the error; "died" or "hung" when nothing else came.
        text: The error as a person reads it.
        mend: What the error says to do.
        seconds: Of computing, which other processes on the machine do not change much.
        megabytes: By which the process grew at its largest.
    """

    kind: str
    text: str = ""
    mend: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


class Watcher:
    """A process that opens one file after the other."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def open(self, path: Path, opener: str = "use") -> Outcome:
        """What comes of a file with one of `OPENERS`."""
        assert self.process.stdin is not None, "it listens"
        assert self.process.stdout is not None, "it answers"
        self.process.stdin.write(json.dumps([opener, str(path)]) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], LONGEST_WAIT_S)[0]:
            self.close()
            return Outcome("hung")
        answer = self.process.stdout.readline()
        return Outcome(**json.loads(answer)) if answer else Outcome("died")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def use(path: Path) -> None:
    """Open a model and let it work: text in, logits, text out."""
    import torch

    import bimo

    lm = bimo.load(path)
    with torch.no_grad():
        lm.model(torch.tensor([[1, 2, 3]]))
    lm.tokenizer.decode(lm.tokenizer.encode("The cat 坐在 \n\n <|end|>"))
    lm.generate("x the", max_tokens=1)


def chat(path: Path) -> None:
    """Open a model and let it answer."""
    import bimo

    bimo.load(path).chat([{"role": "user", "content": "x"}], max_tokens=1)


def believe(path: Path) -> None:
    """A careless reader: it takes whatever a configuration holds."""
    json.loads((path / "config.json").read_text())


def dawdle(path: Path) -> None:
    """A slow reader."""
    start = time.process_time()
    while time.process_time() - start < 2.1:
        path.exists()


OPENERS: dict[str, Callable[[Path], None]] = {"use": use, "chat": chat, "believe": believe, "dawdle": dawdle}


def watched(opener: Callable[[Path], None], path: Path) -> dict[str, Any]:
    """One file, as the fields of an `Outcome`."""
    from bimo import UserError

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free already must not hide what is taken anew
    with contextlib.suppress(OSError):
        _RESET.write_text("5")
    before, start = _megabytes("VmRSS"), time.process_time()
    kind, text, mend = "ran", "", ""
    try:
        opener(path)
    except UserError as error:
        kind, text, mend = "UserError", str(error), error.mend
    except BaseException as error:  # whatever it is, the tests get it
        kind, text = type(error).__name__, str(error)
    seconds = time.process_time() - start
    grown = _megabytes("VmHWM") - before
    return {"kind": kind, "text": text, "mend": mend, "seconds": seconds, "megabytes": grown}


def _megabytes(field: str) -> float:
    """From the kernel's account of this process; 0 where there is none."""
    found = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text()) if _RESET.exists() else None
    return int(found[1]) / 1000 if found else 0.0


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        opener, path = json.loads(line)
        print(json.dumps(watched(OPENERS[opener], Path(path))), flush=True)
        gc.freeze()  # what is there now stays: collecting it again and again would take most of the time


if __name__ == "__main__":
    main()
