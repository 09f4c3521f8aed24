"""A part of a server as the child of its gateway: `python -m bimo.serving.child`.

What it is to do, and the secret by which the gateway calls it, come as a line of JSON on its standard input: nobody
else can read them, as they could an argument. It answers with a line of JSON on its standard output: its address, or
what is wrong. Its input stays open as long as the gateway lives; when it ends, the child ends at once, so that none is
left behind by a gateway that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from io import FileIO
from typing import IO, Any, Literal

from bimo.core.errors import UserError


@dataclass(frozen=True)
class ChildPlan:
    """What a child is to be.

    Attributes:
        part: Which part of the server.
        models: Of an engine: what `bimo.load` takes.
        names: Of an engine: as requests name them.
        adapters: Of an engine: NAME=FOLDER, or MODEL/NAME=FOLDER.
        engine: Of an engine: its settings.
        rules: Of a guard.
        modules: Files or modules that register parts.
        wire: Times and bounds of calls.
        drain_s: How long it may end what is under way.
    """

    part: Literal["engine", "guard"]
    models: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    engine: dict[str, Any] = field(default_factory=dict)
    rules: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    wire: dict[str, Any] = field(default_factory=dict)
    drain_s: float = 30.0

    def to_json(self, secret: str) -> bytes:
        """The line for the child's input."""
        return json.dumps({"plan": asdict(self), "secret": secret}).encode() + b"\n"


def main() -> int:
    """Read the plan, be that part, end with the gateway."""
    source = FileIO(0, closefd=False)  # a buffer has a lock, which its reader would hold at the end
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints goes where logs go: the output is for the gateway
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the part takes signals itself
    first = source.readline()
    if not first.strip():
        print("bimo: this is started by a gateway; start an engine with: bimo engine serve MODEL", file=sys.stderr)
        return 2
    said = json.loads(first)
    threading.Thread(target=_end_with, args=(source,), name="bimo-parent", daemon=True).start()
    try:
        _be(ChildPlan(**said["plan"]), said["secret"], out)
    except UserError as error:
        _say(out, {"what": error.what, "where": error.where, "mend": error.mend})
        return 2
    except KeyboardInterrupt:  # told to end before it was ready
        return 0
    return 0


def _end_with(source: FileIO) -> None:
    """End at once when the gateway has: its end of the pipe is closed with it, however it ended."""
    while source.read(4096):
        pass
    os._exit(0)


def _say(out: IO[str], words: dict[str, Any]) -> None:
    out.write(json.dumps(words) + "\n")
    out.flush()


def _be(plan: ChildPlan, secret: str, out: IO[str]) -> None:
    from bimo.serving.logs import log_to
    from bimo.serving.parts import engine_part, guard_part
    from bimo.serving.standing import PartSettings, listening, stand
    from bimo.serving.wire import WireSettings, shared_secret

    log_to(sys.stderr)
    keys, wire = shared_secret(secret), WireSettings.from_dict(plan.wire)
    if plan.part == "guard":
        app, close = guard_part(plan.rules, plan.modules, keys, wire)
    else:
        app, close = engine_part(plan.models, plan.names, plan.adapters, plan.engine, plan.modules, keys, wire)
    sock = listening(PartSettings(port=0))
    stand(app, sock, plan.drain_s, lambda place: _say(out, {"url": place}), close)


if __name__ == "__main__":
    sys.exit(main())
