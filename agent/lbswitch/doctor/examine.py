"""Run all checks at once, in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lbswitch.core.config import Config
from lbswitch.doctor.case import Case
from lbswitch.doctor.check import Check
from lbswitch.doctor.finding import Finding, NotChecked, Severity
from lbswitch.errors import ConfigError

PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found; or why it could not look."""

    check: Check
    findings: tuple[Finding, ...] = ()
    not_checked: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All results, in the order of the checks."""

    results: tuple[Result, ...]

    @property
    def worst(self) -> Severity:
        """The severity of the worst finding; its number is the exit code."""
        return max((finding.severity for _, finding in self.findings), default=Severity.NOTE)

    @property
    def findings(self) -> list[tuple[Check, Finding]]:
        """The worst first, otherwise in order."""
        found = [(result.check, finding) for result in self.results for finding in result.findings]
        return sorted(found, key=lambda each: -each[1].severity)

    @property
    def not_checked(self) -> dict[str, list[str]]:
        """Reasons, with the ids of the checks that could not look."""
        reasons: dict[str, list[str]] = {}
        for result in self.results:
            if result.not_checked is not None:
                reasons.setdefault(result.not_checked, []).append(result.check.id)
        return reasons

    def to_json(self) -> dict[str, Any]:
        """The one document of --json."""
        return {
            "worst": str(self.worst),
            "checks": len(self.results),
            "findings": [
                {
                    "id": check.id,
                    "severity": str(finding.severity),
                    "service": finding.service,
                    "what": finding.what,
                    "mend": finding.mend,
                }
                for check, finding in self.findings
            ],
            "not_checked": [{"why": why, "ids": ids} for why, ids in self.not_checked.items()],
        }


def examine(case: Case, checks: Sequence[Check], patience_s: float = PATIENCE_S) -> Report:
    """Run those that make sense here. Raises: UnknownService."""
    config = _config(case)
    jobs = [_Job(check, case) for check in checks if check.applies(config)]
    for job in jobs:
        job.start()
    deadline = time.monotonic() + patience_s
    for job in jobs:
        job.join(max(0.0, deadline - time.monotonic()))
    return Report(tuple(job.result(patience_s) for job in jobs))


def _config(case: Case) -> Config | None:
    try:
        return case.loaded
    except ConfigError:
        return None


class _Job(threading.Thread):
    """One check; a daemon, so that a name server that never answers keeps nobody waiting."""

    def __init__(self, check: Check, case: Case) -> None:
        super().__init__(name=f"doctor {check.id}", daemon=True)
        self._check = check
        self._case = case
        self._result: Result | None = None

    def run(self) -> None:
        self._result = _run(self._check, self._case)

    def result(self, patience_s: float) -> Result:
        """What was found so far."""
        late = f"it took longer than {patience_s:g} s"
        return self._result or Result(self._check, not_checked=late)


def _run(check: Check, case: Case) -> Result:
    """Findings that came before a check had to stop count."""
    found: list[Finding] = []
    try:
        _collect(check.run(case), found)
    except NotChecked as error:
        return Result(check, tuple(found), str(error))
    except PermissionError as error:
        return Result(check, tuple(found), f"{error.filename} may not be read by this user: run it as root")
    except Exception as error:  # a check that fails must not hide what the others found
        return Result(check, tuple(found), f"{type(error).__name__}: {error}")
    return Result(check, tuple(found))


def _collect(findings: Iterable[Finding], found: list[Finding]) -> None:
    for finding in findings:
        if finding not in found:
            found.append(finding)
