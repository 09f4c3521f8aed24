"""Logs as lines of JSON: what happened, to whom, how long it took; never what was said, and no key.

Nothing but named fields gets in: a message's arguments and an error's words may hold text of a user.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

_FIELDS = (
    *("id", "key", "method", "route", "status", "seconds", "first_token_s", "queue_s", "prompt_tokens"),
    *("completion_tokens", "model", "error", "place", "left", "signal", "url"),
)
log = logging.getLogger("bimo.serving")


class JsonLines(logging.Formatter):
    """A record as a line of JSON with the fields that are known."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{when}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line["event"] = record.msg if record.name.startswith("bimo") and not record.args else f"{record.name} speaks"
        line |= {name: getattr(record, name) for name in _FIELDS if getattr(record, name, None) not in (None, "")}
        if record.exc_info and record.exc_info[1] is not None:
            line |= failure(record.exc_info[1])
        return json.dumps(line, ensure_ascii=True, default=str)


def failure(error: BaseException) -> dict[str, str]:
    """An error's type, and the line of code that it comes from; not its words."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    at = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
    return {"error": type(error).__name__, "place": at}


def log_to(stream: Any) -> None:
    """Send the logs of the server, and of the library below it, to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("bimo.serving", "uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "bimo.serving" else logging.WARNING)
