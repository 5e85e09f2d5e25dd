"""Installations that no switch asked for: at the start, for edited templates, and for servers that are left out."""

from __future__ import annotations

import time

from lbswitch.core.model import Intent, ServerKey
from lbswitch.errors import BalancerError, LbswitchError, NotSeen, StateError
from lbswitch.ports import Rendered
from lbswitch.serving.looking import PAUSE_S
from lbswitch.serving.moving import Moving


class Installing(Moving):
    """Other files, with the same routes and the same configuration."""

    def start(self, intent: Intent) -> list[str]:
        """Make disk and balancer agree with `intent`, start the balancer if it is down, and look.

        One that was stopped on purpose stays stopped. Gives what differed, in sentences.

        A configuration that can't be rendered or is refused by the checker is
        reported in `files_problem` while what is installed goes on serving. Raises: BalancerError, StateError when
        there is nothing to go on with.
        """
        with self.mutex:
            self.intent = intent
            differences = self._differences(intent)
            try:
                files = self.changed_files(intent)
            except BalancerError:
                if self.balancer.installed() is None:
                    raise
                files = None
            self.balancer.commit(intent, intent.services)
            if files is not None:
                self.balancer.install(files)
            if not self.balancer.is_running():
                why = self.balancer.why_not_started()
                if why is not None:
                    return [*differences, why]
                self.balancer.start()
                self._events.emit("balancer-started", f"{self.config.balancer.kind} {self.balancer.version()} started")
            elif files is not None or not self._runs_what_is_installed():
                self.balancer.reload()
                self._events.emit("reloaded", "the balancer runs an older configuration: reloaded")
            self.balancer.eject(intent.ejected)
            try:
                self.verify(intent.services, answers=1)
            except NotSeen as error:
                differences.append(str(error))
            return differences

    def _differences(self, intent: Intent) -> list[str]:
        on_disk = self.balancer.committed()
        if on_disk is None:
            return []
        return [
            f"{name}: intended {wanted.route} (generation {wanted.generation}), on disk "
            f"{found.route} (generation {found.generation})"
            for name, wanted in intent.services.items()
            if (found := on_disk.services.get(name)) is not None
            and (found.route, found.generation) != (wanted.route, wanted.generation)
        ]

    def _runs_what_is_installed(self) -> bool:
        first = next(iter(self.intent.services))
        try:
            return self._observe(first).revision == self.balancer.installed()
        except NotSeen:
            # Somebody else's may be up without having our files included, and then needs no reload at every start.
            return self.balancer.why_not_started() is not None

    def revive(self) -> bool:
        """Start the balancer again after it died, with what is installed; False when that is not to be.

        It may have been stopped on purpose, or started, while others worked. Raises: StartFailed, StateError.
        """
        with self.mutex:
            if self.balancer.is_running() or self.balancer.why_not_started() is not None:
                return False
            if self.balancer.installed() is None:
                raise StateError("nothing is installed that could be started")
            self.balancer.start()
            self.balancer.eject(self.intent.ejected)
            return True

    def set_ejected(self, ejected: frozenset[ServerKey]) -> None:
        """Leave exactly these servers out of their pools. Raises: BalancerError, StateError; then nothing changed."""
        with self.mutex:
            after = self.intent.with_ejected(ejected)
            if self.balancer.eject(ejected):
                self.intent = after
                return
        checked = self._checked_ahead(after)
        with self.mutex:
            after = self.intent.with_ejected(ejected)
            files = self.changed_files(after, checked=checked)
            if files is not None:
                self._install_or_return(files)
            self.intent = after

    def refresh(self, *, force: bool = False) -> bool:
        """Apply edited templates and certificates; True when something was installed.

        Without `force` no pool loses its last server. Raises: BalancerError, StateError; then nothing has changed.
        """
        checked = self._checked_ahead(self.intent)
        with self.mutex:
            files = self.changed_files(self.intent, may_empty=force, checked=checked)
            if files is None:
                return False
            self.before_change("templates")
            try:
                self._install_or_return(files)
            except LbswitchError as error:
                self.files_problem = str(error)
                raise
            return True

    def _checked_ahead(self, intent: Intent) -> str | None:
        """With the balancer that is in use. Raises: RenderFailed, CheckFailed, said by `files_problem`, too."""
        try:
            return self.check_ahead(self.balancer, intent)
        except BalancerError as error:
            self.files_problem = str(error)
            raise

    def _install_or_return(self, files: Rendered) -> None:
        """Install, reload and see the new revision on one service; else return to the revision before."""
        before = self.balancer.intended_revision()
        self.balancer.install(files)
        if not self.balancer.is_running():
            return
        try:
            self.balancer.reload()
            known = [name for name in self.config.services if name in self.intent.services]
            for name in known[:1]:
                self._see_revision(name, files.revision)
        except LbswitchError:
            if before is not None:
                self.balancer.reinstall(before)
                self.balancer.reload()
            raise
        self._stands((), files=True)

    def _see_revision(self, service: str, revision: str) -> None:
        deadline = time.monotonic() + self.config.services[service].verify.deadline
        while True:
            try:
                if self._observe(service).revision == revision:
                    return
                problem = f"{service}: the listener still runs the configuration before {revision}"
            except NotSeen as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise NotSeen(problem)
            time.sleep(PAUSE_S)
