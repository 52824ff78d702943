"""A plugin of pytest for suites that are run on purpose: a skipped test is a failure, with its reason.

python -m pytest -p tests.no_skips tests/browser
"""

from __future__ import annotations

import pytest


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn success into failure if a test, or a whole module, was skipped, or if there was none."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    if reporter.stats.get("skipped") and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why a run without a failed test has failed; -ra has printed the reasons above."""
    if skipped := terminalreporter.stats.get("skipped"):
        terminalreporter.write_line(f"{len(skipped)} skipped: this suite counts them as failed", red=True)
