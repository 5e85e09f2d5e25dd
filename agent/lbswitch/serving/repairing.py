"""Drift: what is not as intended, although no operation of ours made it so; and putting that right."""

from __future__ import annotations

from collections.abc import Sequence

from lbswitch.errors import BalancerError, StateError
from lbswitch.ports import Difference, Rendered
from lbswitch.serving.reconfiguring import Reconfiguring

_SEEN_AFTER_REPAIR = 10  # services; the disk was looked at for all of them


class Repairing(Reconfiguring):
    """What others changed."""

    def glance(self) -> list[Difference]:
        """What differs, looked at without waiting for operations: some of it may be one that is under way."""
        if self._reconfiguring:  # neither the old services nor the new ones could be judged
            with self.mutex:
                return self._differing()
        return self._differing()

    def _differing(self) -> list[Difference]:
        with self.usage.own_look():
            return self.balancer.differences(self.intent)

    def differences(self) -> list[Difference]:
        """What differs, looked at between operations. Never raises."""
        with self.mutex:
            return [] if self._pending is not None else self.glance()

    def repair(self) -> list[str]:
        """Put right what differs and see that at disk and listeners; gives what it was, in sentences.

        Raises: BalancerError, StateError.
        """
        with self.mutex:
            found = self.glance()
            if found:
                self._step("repair")
                self.balancer.repair(self.intent, self._intended_files())
                self._refuse_what_is_left()
            intent = self.intent
        self.verify({name: intent.services[name] for name in self._to_be_seen(found)})
        return list(dict.fromkeys(difference.what for difference in found))

    def _intended_files(self) -> Rendered | None:
        """The content of the intended revision, if that is what the templates still give."""
        try:
            rendered = self.balancer.render(self.intent)
        except BalancerError:
            return None
        return rendered if rendered.revision == self.balancer.intended_revision() else None

    def _refuse_what_is_left(self) -> None:
        left = self.glance()
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise StateError(f"repaired, but it differs again or still: {left[0].what}{more}")

    def _to_be_seen(self, found: Sequence[Difference]) -> list[str]:
        """The services to ask: some of those that were named, and some of all when a difference concerns all."""
        named = [difference.service for difference in found if difference.service is not None]
        whole = list(self.intent.services) if any(difference.service is None for difference in found) else []
        asked = [*dict.fromkeys(named)][:_SEEN_AFTER_REPAIR] + whole[:_SEEN_AFTER_REPAIR]
        running = self.balancer.is_running()
        return [name for name in dict.fromkeys(asked) if running and name in self.intent.services]
