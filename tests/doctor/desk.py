"""What a test of the doctor needs: a case in a directory, on a host that has nothing wrong with it."""

import copy
from pathlib import Path
from typing import Any

import yaml

from lbswitch.client import Document
from lbswitch.doctor.case import Case
from lbswitch.doctor.check import Check
from lbswitch.doctor.finding import Finding
from lbswitch.doctor.host import Clock, Host, Space
from lbswitch.doctor.registry import CHECKS
from lbswitch.errors import AgentUnreachable, LbswitchError
from tests.support.ports import free_port


class QuietHost(Host):
    """This machine, but for what differs between machines: everything is as it should be. A test changes it."""

    def __init__(self) -> None:
        self.kind = "ext4"
        self.age: str | None = None
        self.left = Space(free=50 << 30, total=100 << 30, inodes=10**7)
        self.is_synchronized: bool | None = True
        self.units: dict[str, dict[str, str]] = {}
        self.unit_name: str | None = None
        self.systemd = False
        self.jumped_s = 0.0
        self.limit: int | None = 10**6
        self.root = True

    @property
    def is_root(self) -> bool:
        return self.root

    @property
    def has_systemd(self) -> bool:
        return self.systemd

    def filesystem(self, path: Path) -> str:
        return self.kind

    def cleaned(self, path: Path) -> str | None:
        return self.age

    def space(self, path: Path) -> Space:
        return self.left

    def clock(self) -> Clock:
        return Clock(self.is_synchronized)

    def now(self) -> float:
        return super().now() + self.jumped_s

    def unit(self, name: str) -> dict[str, str]:
        return self.units.get(name, {})

    def unit_of(self, pid: int) -> str | None:
        return self.unit_name

    def open_files_limit(self, pid: int) -> int | None:
        return self.limit


class Client:
    """An agent that answers with this Status document, or fails."""

    def __init__(self, answer: Document | LbswitchError) -> None:
        self._answer = answer

    def status(self) -> Document:
        if isinstance(self._answer, LbswitchError):
            raise self._answer
        return self._answer


NOBODY = AgentUnreachable("nobody answers on /run/lbswitch/agent.sock; traffic is not affected")


class Desk:
    """A configuration in a directory; `case`, `found`."""

    def __init__(self, directory: Path, kind: str = "nginx", **service: Any) -> None:
        self.directory = directory
        self.path = directory / "lbswitch.yaml"
        self.state_dir = directory / "state"
        self.host = QuietHost()
        self.answer: Document | LbswitchError = NOBODY
        self.document: dict[str, Any] = {
            "agent": {"state_dir": str(self.state_dir), "socket": str(directory / "agent.sock")},
            "balancer": {"kind": kind},
            "services": {
                "shop": {
                    "bind": f"127.0.0.1:{free_port()}",
                    "blue": {"servers": [f"127.0.0.1:{free_port()}"]},
                    "green": {"servers": [f"127.0.0.1:{free_port()}"]},
                    **service,
                }
            },
        }

    @property
    def shop(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document["services"]["shop"]
        return found

    def case(self, service: str | None = None) -> Case:
        self.path.write_text(yaml.safe_dump(self.document))
        self.path.chmod(0o644)
        return self.look(service)

    def look(self, service: str | None = None) -> Case:
        """The file as it is."""
        return Case(self.path, lambda: Client(self.answer), service, self.host)  # type: ignore[arg-type]

    def found(self, name: str, case: Case | None = None) -> list[Finding]:
        """What one check says. Raises: NotChecked."""
        return list(check(name).run(case or self.case()))

    def healthy(self, **changes: Any) -> Document:
        """A Status document of an agent that has nothing to say, with these changes to its one service."""
        import os
        import time

        import lbswitch

        pool = {
            "state": "healthy",
            "healthy": 1,
            "total": 1,
            "servers": [{"address": "127.0.0.1:1", "healthy": True, "state": "healthy", "last_error": None}],
        }
        service = {
            "live": "blue", "weight": 100, "generation": 2, "verified": True, "frozen": None, "previous": "green",
            "problem": None, "operation": None, "blue": pool, "green": copy.deepcopy(pool), **changes,
        }  # fmt: skip
        started_at = time.time() - (self.host.since_boot() - self.host.started(os.getpid()))
        return {
            "services": {"shop": service},
            "agent": {
                "version": lbswitch.__version__,
                "pid": os.getpid(),
                "started_at": started_at,
                "config": {"path": str(self.path), "valid": True, "error": None, "files_error": None},
            },
        }


def check(name: str) -> Check:
    return next(one for one in CHECKS if one.id == name)


def severities(findings: list[Finding]) -> list[str]:
    return [str(finding.severity) for finding in findings]
