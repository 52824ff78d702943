"""Enough of a reader for our own Dockerfile and .dockerignore to ask what an image holds; hadolint checks the rest."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str | None:
    """The path of a command installed beside this Python or anywhere, or None."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


@dataclass(slots=True)
class Stage:
    """One FROM: what it starts from, its name, its instructions as (word, rest)."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def stages(text: str | None = None) -> dict[str, Stage]:
    """The stages by name, in order."""
    found: dict[str, Stage] = {}
    for word, rest in _instructions((ROOT / "Dockerfile").read_text() if text is None else text):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(base, name)
        elif found:
            list(found.values())[-1].instructions.append((word, rest))
    return found


def lineage(target: str) -> list[tuple[str, str]]:
    """The instructions of a target and of the stages it is built on, first to last."""
    known = stages()
    if target not in known:
        return []
    return lineage(known[target].base) + known[target].instructions


def environment(target: str) -> dict[str, str]:
    """The ENV of an image."""
    rests = [rest for word, rest in lineage(target) if word == "ENV"]
    return dict(part.split("=", 1) for rest in rests for part in shlex.split(rest))


def last(target: str, word: str) -> str:
    """The rest of the last such instruction of an image: the one that counts."""
    return [rest for name, rest in lineage(target) if name == word][-1]


def copied() -> list[str]:
    """Every path that some stage copies from the build context."""
    rests = [rest for stage in stages().values() for word, rest in stage.instructions if word == "COPY"]
    return [source for rest in rests if "--from=" not in rest for source in rest.split()[:-1]]


def build_app(directory: Path) -> None:
    """Lay out the image's /app: what the stage `app` copies, without what .dockerignore keeps out."""
    for word, rest in stages()["app"].instructions:
        if word == "COPY":
            source, destination = rest.split()
            for path in _files(ROOT / source):
                if not ignored(path.relative_to(ROOT).as_posix()):
                    inside = path.relative_to(ROOT / source) if (ROOT / source).is_dir() else Path(source)
                    target = directory / destination / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern that matches it or a directory above it decides."""
    out = False
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(re.fullmatch(_expression(pattern), candidate) for candidate in above):
                out = not line.startswith("!")
    return out


def _files(path: Path) -> Iterator[Path]:
    yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _expression(pattern: str) -> str:
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.sub(r"\*\*/|\*\*|[*?]|[^*?]+", lambda found: translated.get(found[0]) or re.escape(found[0]), pattern)


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, rest = line.split(maxsplit=1)
        yield word, re.sub(r"\s+", " ", rest).strip()
