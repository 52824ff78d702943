"""One piece of a run: the check or measurement, its backend, and its duration."""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]

# Names of the parts in the file of results.
BUILD, FACTS, CHECK, HEADLINE, KERNELS = "build", "facts", "check", "headline", "kernels"
SWEEP, MODELS, SERVICE, PROFILE = "sweep", "models", "service", "profile"
OK, FAILED, SKIPPED, OUT_OF_MEMORY, RUNNING = "ok", "failed", "skipped", "out_of_memory", "running"
POSTPONED = "postponed"  # not enough time yet; this call may run it later
LONGEST_REASON = 2000
GRACE_S = 20  # beside three times the expected seconds


class SkippedError(Exception):
    """An entry cannot run here; the message says why."""


class PostponedError(Exception):
    """An entry cannot run yet; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`run` returns the values to record; those of a check have the member `ok`."""

    part: str
    name: str
    run: Callable[[], Values]
    seconds: float = 1.0  # expected
    backend: str = ""
    case: str = ""  # width and dtype; empty: all of the backend's
    grace_s: float = GRACE_S

    @property
    def limit(self) -> float:
        """Seconds after which the process that runs it is ended."""
        return 3 * self.seconds + self.grace_s

    def concerns(self, check: Entry) -> bool:
        """Return whether a check is of the same backend and, where both name one, of the same case."""
        same = self.backend == check.backend != ""
        return same and (self.case == check.case or not self.case or not check.case)


def attempt(entry: Entry) -> Values:
    """Run an entry; returns its values and its status, and the reason where that is not `ok`."""
    try:
        values = dict(entry.run())
    except SkippedError as error:
        return {"status": SKIPPED, "reason": str(error)}
    except PostponedError as error:
        return {"status": POSTPONED, "reason": str(error)}
    except (Exception, SystemExit) as error:
        from model.runtime.runner import is_out_of_memory  # the module imports torch, which builds do not need

        memory = isinstance(error, Exception) and is_out_of_memory(error)
        return {"status": OUT_OF_MEMORY if memory else FAILED, "reason": reason_of(error), "where": _where(error)}
    if values.pop("ok", True):
        return {"status": OK, **values}
    return {"status": FAILED, "reason": "wrong result", **values}


def reason_of(error: BaseException) -> str:
    """Return type and message of an error, with the end of the output of a command that failed."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, subprocess.CalledProcessError):
        text += "".join(f"\n{_text(output)[-LONGEST_REASON // 2 :]}" for output in (error.stdout, error.stderr))
    text = text.strip()
    if len(text) <= LONGEST_REASON:
        return text
    return f"{text[: LONGEST_REASON // 4]} ... {text[-3 * LONGEST_REASON // 4 :]}"  # the reason is at the end of a log


def why_not(entry: Entry, checks: Sequence[Entry], recorded: Callable[[Entry], Values]) -> Values | None:
    """Return the record of an entry that must not be timed, because a check of it failed or has not run.

    Checks may always run.
    """
    for check in checks if entry.part != CHECK else ():
        found = recorded(check)
        status = found.get("status")
        if not entry.concerns(check) or status == OK:
            continue
        if status in (None, POSTPONED, RUNNING):
            return {"status": POSTPONED, "reason": f"its check {check.name!r} has not run"}
        return {"status": SKIPPED, "reason": f"its check {check.name!r} {status}: {found.get('reason')}"}
    return None


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "; ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames[-3:])


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
