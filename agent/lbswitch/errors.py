"""Every error lbswitch raises on purpose.

    LbswitchError            1 / 500   unexpected
    ├── ConfigError          2 / 422   the configuration file is wrong; carries every problem
    ├── InvalidRequest       2 / 422   a command or request that makes no sense
    ├── UnknownService       2 / 404
    ├── UnknownOperation     2 / 404
    ├── UnknownSnapshot      2 / 404
    ├── Refused              3 / 409   a gate said no, nothing changed
    ├── AgentUnreachable     6 / 503
    ├── Conflict             7 / 409   `expect` does not hold
    ├── Busy                 7 / 423   another operation is running
    ├── NotAllowed           8 / 403
    ├── StateError           1 / 500   the state directory: not writable, full, newer, in use
    └── BalancerError        4 / 500   nginx or HAProxy did not do what was asked
        ├── BalancerMissing  2 / 500   not installed
        ├── BalancerTooOld   2 / 500   lacks what the configuration uses
        ├── RenderFailed     2 / 500   a template error
        ├── CheckFailed      2 / 500   the balancer's own checker said no
        ├── NeedsForce       3 / 409   it would empty a pool or cut off clients
        ├── ReloadFailed
        ├── CommitFailed               the pointer or the maps could not be moved
        ├── StartFailed      1 / 500
        └── NotSeen                    the service's own listener does not show the new generation

The first number is the exit code of the command line, the second the HTTP status. The top level reads them from
the error and does not switch on types. A message says what failed, what still holds, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class LbswitchError(Exception):
    """The root: something failed and nobody foresaw exactly how."""

    exit_code = 1
    http_status = 500
    slug = "unexpected"
    title = "Unexpected error"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration file; `line` counts from 1, 0 is "the file as a whole"."""

    message: str
    path: str = ""
    line: int = 0


class ConfigError(LbswitchError):
    """The configuration is wrong; `problems` holds all that was found, in the order of the file."""

    exit_code = 2
    http_status = 422
    slug = "configuration"
    title = "Invalid configuration"

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        """Keep where the configuration came from and everything that is wrong with it."""
        self.source = source
        self.problems = tuple(problems)
        super().__init__("\n".join(self._line(problem) for problem in self.problems))

    def _line(self, problem: Problem) -> str:
        where = f"{self.source}:{problem.line}" if problem.line else self.source
        return f"{where}: {problem.path}: {problem.message}" if problem.path else f"{where}: {problem.message}"


class InvalidRequest(LbswitchError):
    """A request or command that can't be carried out as it was said."""

    exit_code = 2
    http_status = 422
    slug = "invalid-request"
    title = "Invalid request"


class UnknownService(InvalidRequest):
    """No service of that name is configured."""

    http_status = 404
    slug = "unknown-service"
    title = "Unknown service"


class UnknownOperation(InvalidRequest):
    """No operation of that id is in the history."""

    http_status = 404
    slug = "unknown-operation"
    title = "Unknown operation"


class UnknownSnapshot(InvalidRequest):
    """No snapshot of that number, or no file of that name in it."""

    http_status = 404
    slug = "unknown-snapshot"
    title = "Unknown snapshot"


class Refused(LbswitchError):
    """A gate said no; nothing was changed."""

    exit_code = 3
    http_status = 409
    slug = "refused"
    title = "Refused by a gate"

    def __init__(self, gate: str, message: str) -> None:
        """Name the gate (`health`, `freeze`, `previous`, ...) and say why, with numbers."""
        self.gate = gate
        super().__init__(message)


class AgentUnreachable(LbswitchError):
    """Nobody answers on the agent's socket or URL."""

    exit_code = 6
    http_status = 503
    slug = "agent-unreachable"
    title = "Agent unreachable"


class Conflict(LbswitchError):
    """What the caller expected to be live is not live; nothing was changed."""

    exit_code = 7
    http_status = 409
    slug = "conflict"
    title = "Expectation does not hold"


class Busy(Conflict):
    """Another operation holds the service."""

    http_status = 423
    slug = "busy"
    title = "Another operation is running"


class NotAllowed(LbswitchError):
    """The caller may not do this."""

    exit_code = 8
    http_status = 403
    slug = "not-allowed"
    title = "Not allowed"


class StateError(LbswitchError):
    """The state directory can't be used: not writable, full, from a newer version, or held by another agent."""

    slug = "state"
    title = "State directory"


class BalancerError(LbswitchError):
    """Nginx or HAProxy did not do what was asked; what served before still serves."""

    exit_code = 4
    slug = "balancer"
    title = "Balancer"


class BalancerMissing(BalancerError):
    """The balancer's program is not on this host."""

    exit_code = 2
    slug = "balancer-missing"


class BalancerTooOld(BalancerError):
    """The balancer lacks a feature that the configuration uses."""

    exit_code = 2
    slug = "balancer-too-old"


class RenderFailed(BalancerError):
    """A template could not be rendered. An operation that meets it ends with 4."""

    exit_code = 2
    slug = "render"
    title = "Template error"


class CheckFailed(BalancerError):
    """The balancer's own checker refused the rendered configuration. An operation that meets it ends with 4."""

    exit_code = 2
    slug = "check"
    title = "Configuration check failed"


class NeedsForce(BalancerError):
    """A change of the files would take servers or a listener away from clients; a person may force it."""

    exit_code = 3
    http_status = 409
    slug = "needs-force"
    title = "Needs --force"


class ReloadFailed(BalancerError):
    """The balancer did not take the new configuration."""

    slug = "reload"


class CommitFailed(BalancerError):
    """The pointer or the maps could not be moved."""

    slug = "commit"


class StartFailed(BalancerError):
    """The balancer could not be started or stopped."""

    exit_code = 1
    slug = "start"


class NotSeen(BalancerError):
    """The service's own listener does not answer, or answers with another color or generation."""

    slug = "not-seen"
    title = "Not seen at the listener"


def problem_document(error: LbswitchError) -> dict[str, Any]:
    """The error as an RFC 9457 problem document; `exit_code` is what the command line exits with."""
    document: dict[str, Any] = {
        "type": f"urn:lbswitch:problem:{error.slug}",
        "title": error.title,
        "status": error.http_status,
        "detail": str(error),
        "exit_code": error.exit_code,
    }
    if isinstance(error, Refused):
        document["gate"] = {"name": error.gate, "message": str(error)}
    if isinstance(error, ConfigError):
        document["problems"] = [
            {"file": error.source, "line": problem.line, "path": problem.path, "message": problem.message}
            for problem in error.problems
        ]
    return document
