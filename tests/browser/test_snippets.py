"""What the page offers to copy runs as copied, beside a photograph called photo.jpg."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import photo

pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
from playwright.sync_api import Page, expect

COMMANDS = {"curl": ["sh", "-e"], "JavaScript": ["node", "--input-type=module"]}
PYTHON = [sys.executable, "-"]


def _copied(page: Page, op: str, name: str) -> str:
    """What is in the clipboard after a click on Copy."""
    page.check(f"input[name=op][value={op}]")
    page.get_by_role("tab", name=name, exact=True).click()
    page.click("#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


@pytest.mark.parametrize(("op", "answer"), [("classify", "label"), ("embed", "")])
def test_every_snippet_runs_as_copied(page: Page, tmp_path: Path, op: str, answer: str) -> None:
    """With this page's address and options."""
    (tmp_path / "photo.jpg").write_bytes(photo())
    page.check(f"input[name=op][value={op}]")
    names = page.locator("#tabs button").all_inner_texts()
    assert {"curl", "JavaScript"} <= set(names)
    for name in names:
        code = _copied(page, op, name)
        command = COMMANDS.get(name, PYTHON)
        ran = subprocess.run(
            command, input=code, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert 0 == ran.returncode, f"{name}:\n{code}\n{ran.stderr}"
        assert ran.stdout.strip(), name
        if name in COMMANDS:
            assert answer in ran.stdout
