"""Moves: routes, with the files that they need, and the return to what was before."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from lbswitch.core import guard
from lbswitch.core.config import Switching
from lbswitch.core.model import Intent, ServiceIntent
from lbswitch.errors import BalancerError, NeedsForce, StateError
from lbswitch.ports import Balancer, Rendered
from lbswitch.serving.looking import Looking, Sight


@dataclass(frozen=True, slots=True)
class Undo:
    """How to return: the services as they were, and the revision that was installed if files change."""

    services: Mapping[str, ServiceIntent]
    revision: str | None


class Moving(Looking):
    """Other routes."""

    _pending: Undo | None = None  # a return that failed
    _owes_reload = False  # files were put back that may not run yet

    def needs_files(self, service: str) -> bool:
        """Whether a switch of this service has to change rendered files."""
        return self.config.switching(service) is Switching.RELOAD

    def check_ahead(self, balancer: Balancer, intent: Intent) -> str | None:
        """Let the checker judge what would be installed for this intent; gives its revision, None if it is installed.

        That may take as long as the checker likes, so nobody who has to move traffic waits for it: call it without
        `mutex`, and `changed_files` then skips what was judged. Raises: RenderFailed, CheckFailed.
        """
        rendered = balancer.render(intent)
        if rendered.revision == balancer.installed():
            return None
        balancer.check(rendered)
        return rendered.revision

    def changed_files(self, intent: Intent, *, may_empty: bool = False, checked: str | None = None) -> Rendered | None:
        """What would have to be installed for this intent, checked by the balancer; None when nothing differs.

        `may_empty` allows that a pool which has servers would have none; `checked` is the revision that was judged just
        now. Raises: RenderFailed, CheckFailed, NeedsForce.
        """
        try:
            self._step("render")
            rendered = self.balancer.render(intent)
            changed = rendered.revision != self.balancer.installed()
            if changed:
                self._step("check")
                if rendered.revision != checked:
                    self.balancer.check(rendered)
                if not may_empty:
                    self._refuse_to_empty_pools(rendered)
        except BalancerError as error:
            self.files_problem = str(error)
            raise
        self.files_problem = None
        return rendered if changed else None

    def _refuse_to_empty_pools(self, rendered: Rendered) -> None:
        """Raises: NeedsForce. Without anything installed, or when it can't be read, there is nothing to lose."""
        installed = self.balancer.installed()
        if installed is None:
            return
        try:
            before = self.balancer.pools(self.balancer.read(installed))
        except StateError:
            return
        need_force(guard.lost_pools(before, self.balancer.pools(rendered), self.config))

    def undo_for(self, services: Iterable[str], files: Rendered | None) -> Undo:
        """How to return from a move of these services with these files; with what is still to be put back."""
        pending = self._pending or Undo({}, None)
        revision = None if files is None else self.balancer.intended_revision()
        before = {name: self.intent.services[name] for name in services}
        return Undo({**pending.services, **before}, pending.revision or revision)

    def move(self, after: Intent, files: Rendered | None, *, gently: bool = True) -> None:
        """Serve `after` from now on; the caller verifies. `gently` is for the reload that new files need.

        Raises: BalancerError, StateError.
        """
        before = self.intent
        self._moves += 1
        if files is not None:
            self._install(before, after, files, gently=gently)
        self._step("commit")
        names = changed(before, after)
        for name in names:
            self.sights[name] = Sight(verified=False, detail="a switch is under way", at=time.time())
        self.balancer.commit(after, names)
        self.intent = after
        self._stands(names, files=files is not None)

    def _stands(self, services: Collection[str], *, files: bool) -> None:
        """These services, and the installed files, are meant to be so now: nothing puts them back any more."""
        pending = self._pending
        if files:
            self._owes_reload = False
        if pending is not None:
            left = {name: intent for name, intent in pending.services.items() if name not in services}
            revision = None if files else pending.revision
            self._pending = Undo(left, revision) if left or revision is not None else None

    def _install(self, before: Intent, after: Intent, files: Rendered, *, gently: bool) -> None:
        """Install and reload, with old and new workers both finding their way while that lasts.

        So the pointer first holds what both read: the routes as they were, with all that the new files look for.
        """
        both = before.with_services(
            {
                name: replace(before.services[name], weighted=intent.weighted) if name in before.services else intent
                for name, intent in after.services.items()
            }
        )
        if both != before:
            self._step("prepare")
            self.balancer.commit(both, changed(before, both))
        self._step("install")
        self.balancer.install(files)
        if self.balancer.is_running():
            self._step("reload")
            self.balancer.reload(gently=gently)

    def put_back(self, undo: Undo) -> None:
        """Serve again what was served, and see it. Raises: BalancerError, StateError; `settle` then tries again."""
        with self.mutex:
            services = {name: intent for name, intent in undo.services.items() if name in self.config.services}
            self._pending = undo
            self._moves += 1
            self.intent = self.intent.with_services(services)
            self._step("revert")
            self._return_files(undo.revision)
            self.balancer.commit(self.intent, services)
            self._pending = None
        self.verify(services, reloaded=undo.revision is not None)

    def _return_files(self, revision: str | None) -> None:
        """Have this revision on disk again, and running: a reload that failed is owed until one works.

        Raises: StateError, ReloadFailed.
        """
        if revision is not None and revision != self.balancer.installed():
            self.balancer.reinstall(revision)
            self._owes_reload = True
        if self._owes_reload and self.balancer.is_running():
            self.balancer.reload(gently=False)
        self._owes_reload = False

    def settle(self) -> bool:
        """Repeat a return that failed. True when there was one and it worked. Raises: BalancerError, StateError."""
        with self.mutex:
            pending = self._pending
            if pending is None:
                return False
            self.put_back(pending)
            return True


def changed(before: Intent, after: Intent) -> set[str]:
    """The services that are new, or served otherwise."""
    known = before.services.get  # most of a thousand are the same objects, which takes no comparison to see
    return {name for name, intent in after.services.items() if known(name) is not intent and known(name) != intent}


def need_force(lost: list[str]) -> None:
    """Raises: NeedsForce with what would be lost."""
    if lost:
        raise NeedsForce(f"{'; '.join(lost)}. If that is meant: lbswitch apply --force")
