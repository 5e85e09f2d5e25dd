"""Hears what happens, keeps it in the outbox, and delivers it: one thread writes, and each target has one of its own.

Nothing here is done by the event loop or by the thread of an operation: `heard` appends to a queue and returns. A
target that is dead or hangs keeps only its own alerts waiting. The threads are daemons: none can keep the agent alive.
"""

from __future__ import annotations

import asyncio
import queue
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lbswitch.core.alert_config import AlertsConfig, AlertTarget, Format
from lbswitch.core.alerts import TEST, Alert, Level, alert_of, alert_of_operation, is_own, retry_delay_s
from lbswitch.core.durations import format_duration
from lbswitch.core.model import Operation
from lbswitch.errors import InvalidRequest
from lbswitch.events import Event, Events
from lbswitch.notify.outbox import Delivery, Outbox, State
from lbswitch.notify.secrets import NotDelivered, read_secret, redact, why_unusable

_REFUSED_AT_MOST = 5  # attempts of an alert that the receiver itself refuses; those behind it wait
_LOOK_EVERY_S = 60.0
_MOST_WAIT_S = 300.0  # however the clock is set
_STOP_S = 3.0
_TEST_S = 60.0
_LOOK_BACK = 200  # operations of the history at the start
_QUEUED = 10_000
_WRITE_AGAIN_S = 5.0


def send(target: AlertTarget, delivery: Delivery, host: str, timeout_s: float) -> None:
    """One attempt. Blocks for the timeout and little more. Raises: NotDelivered, without any secret in it."""
    from lbswitch.notify import wording

    if target.url_file is not None:
        from lbswitch.notify import apprised

        title, body = wording.plain(delivery.alert, host)
        apprised.tell(read_secret(target.url_file), title, body, str(delivery.alert.level), timeout_s)
        return
    from lbswitch.notify import webhook

    headers = {"X-Lbswitch-Delivery": delivery.id, "X-Lbswitch-Attempt": str(delivery.attempts)}
    url = target.webhook or read_secret(target.webhook_file or "")
    if target.format is Format.SLACK:
        body_bytes = wording.as_slack(delivery.alert, host)
    else:
        body_bytes = wording.as_json(delivery.alert, host, delivery.id)
        secret = read_secret(target.secret_file or "")
        headers["X-Lbswitch-Signature"] = webhook.sign(body_bytes, secret, int(time.time()))
    try:
        webhook.post(url, body_bytes, headers, timeout_s)
    except NotDelivered as error:
        if target.webhook is None:
            raise NotDelivered(
                redact(str(error), *_secret_parts(url)), is_about_message=error.is_about_message
            ) from None
        raise


def _secret_parts(url: str) -> list[str]:
    """All of a URL but its host, which a message needs."""
    parts = urlsplit(url)
    return [part for part in (parts.username, parts.password, parts.path, parts.query, parts.fragment) if part]


Send = Callable[[AlertTarget, Delivery, str, float], None]


class Alerts:
    """`heard` and `tell` from anywhere; `run` until cancelled."""

    def __init__(self, path: Path, settings: Callable[[], AlertsConfig], events: Events, send: Send = send) -> None:
        """`path` is the outbox's file, made with the first target; `settings` is asked anew every time."""
        self._path = path
        self._settings = settings
        self._events = events
        self.send = send
        self.host = socket.gethostname()
        self._outbox: Outbox | None = None
        self._heard: queue.SimpleQueue[Event | Callable[[], None] | None] = queue.SimpleQueue()
        self._couriers: dict[str, _Courier] = {}
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self.is_stopping = False
        self._writer = threading.Thread(target=self._write, name="lbswitch-alerts", daemon=True)

    @property
    def settings(self) -> AlertsConfig:
        """As configured now."""
        return self._settings()

    # -- hearing -----------------------------------------------------------------------------------------------

    def heard(self, event: Event) -> None:
        """An `events.Listener`: returns at once; the alert is on disk a moment later."""
        if not is_own(event.type) and self._heard.qsize() < _QUEUED:
            self._heard.put(event)

    def catch_up(self, history: Callable[[int], Sequence[Operation]]) -> None:
        """Tell of operations that ended when nobody could write an alert any more; `history` gives the newest first."""
        self._heard.put(lambda: self._catch_up(history))

    def _catch_up(self, history: Callable[[int], Sequence[Operation]]) -> None:
        outbox = self._open()
        if outbox is None or outbox.is_new:
            return
        since = max(time.time() - self.settings.give_up_after, outbox.remembers_since)
        for operation in reversed(history(_LOOK_BACK)):
            if operation.ended_at is not None and operation.ended_at > since:
                alert = alert_of_operation(operation.to_json(), at=operation.ended_at)
                if alert is not None:
                    self.tell(alert)

    def _write(self) -> None:
        while True:
            try:
                heard = self._heard.get(timeout=_WRITE_AGAIN_S if self._is_behind() else None)
            except queue.Empty:
                self._again()
                continue
            if heard is None:
                return
            try:
                if isinstance(heard, Event):
                    self._hear(heard)
                else:
                    heard()
            except Exception as error:
                self._events.once(
                    "alerts", "alerts-trouble", f"an alert could not be made: {type(error).__name__}: {error}"
                )

    def _is_behind(self) -> bool:
        return self._outbox is not None and self._outbox.unwritten > 0

    def _again(self) -> None:
        if self._outbox is not None:
            self._outbox.write_late()
            self._say_problem(self._outbox)

    def _hear(self, event: Event) -> None:
        alert = alert_of(
            *(event.type, event.message, event.service, event.level, event.data), at=event.at, identity=uuid.uuid4().hex
        )
        if alert is not None:
            self.tell(alert)
        for courier in list(self._couriers.values()):
            courier.poke()  # the event may be that a target's settings were mended

    def tell(self, alert: Alert, only: Sequence[str] | None = None) -> None:
        """Keep it for every target that wants it, or for these; on disk afterwards. A full disk raises nothing."""
        outbox = self._open()
        if outbox is None:
            return
        settings = self.settings
        wanted = [name for name, each in settings.targets.items() if each.wishes.want(alert)] if only is None else only
        dropped = outbox.add(alert, wanted, settings.keep)
        self._say_problem(outbox)
        for target in sorted({each.target for each in dropped or ()}):
            self._events.once(
                f"alerts dropped {target}",
                "alerts-dropped",
                f"alert target {target}: more than {settings.keep} alerts wait (alerts.keep); the oldest give way",
            )
        for name in wanted:
            self._courier(name).poke()

    def _say_problem(self, outbox: Outbox) -> None:
        if outbox.problem is None:
            self._events.over("alerts disk")
        else:
            self._events.once("alerts disk", "alerts-not-written", outbox.problem.partition(";")[0])

    def _open(self) -> Outbox | None:
        """The outbox; none while there never was a target."""
        with self._lock:
            if self._outbox is None and (self.settings.targets or self._path.exists()):
                self._outbox = Outbox(self._path)
                for target in sorted(self._outbox.targets()):
                    self._courier(target).poke()
            return self._outbox

    def _courier(self, target: str) -> _Courier:
        courier = self._couriers.get(target)
        if courier is None:
            courier = self._couriers[target] = _Courier(self, target)
            courier.thread.start()
        return courier

    def begin(self) -> None:
        """Start to write what is heard, and to deliver."""
        self._writer.start()
        self._heard.put(self._go_on)

    def _go_on(self) -> None:
        """Go on with what an earlier agent could not deliver."""
        outbox = self._open()
        if outbox is not None:
            self._say_problem(outbox)

    # -- being asked -------------------------------------------------------------------------------------------

    def test(self, target: str | None) -> list[dict[str, Any]]:
        """Send a test alert to one target or all, through the outbox, once; says how it ended. Blocks.

        Raises: InvalidRequest.
        """
        known = self.settings.targets
        if not known:
            raise InvalidRequest("no alert targets are configured: write them under alerts.targets (docs/alerts.md)")
        if target is not None and target not in known:
            raise InvalidRequest(f"there is no alert target {target!r}; known: {', '.join(sorted(known))}")
        names = sorted(known) if target is None else [target]
        alert = Alert(
            *(uuid.uuid4().hex, time.time(), TEST, None, Level.INFO),
            title="lbswitch: a test alert",
            sentence="this is a test: alerts of this agent arrive here",
            advice="nothing is to be done",
        )
        self.tell(alert, names)
        outbox = self._open()
        deliveries = [] if outbox is None else outbox.of_alert(alert.id)
        deadline = time.monotonic() + _TEST_S
        return [self._await(each, deadline) for each in deliveries]

    def _await(self, delivery: Delivery, deadline: float) -> dict[str, Any]:
        outbox = self._open()
        current: Delivery | None = delivery
        with self._changed:
            while outbox is not None and not self.is_stopping:
                current = outbox.delivery(delivery.id)
                if current is None or current.state.is_over or time.monotonic() > deadline:
                    break
                self._changed.wait(min(1.0, max(0.01, deadline - time.monotonic())))
        if current is not None and not current.state.is_over and outbox is not None:
            error = (
                "another attempt to this target is still under way" if not self.is_stopping else "the agent is stopping"
            )
            outbox.change(replace(current, state=State.DROPPED, ended_at=time.time(), error=error))
            current = outbox.delivery(delivery.id)
        is_delivered = current is not None and current.state is State.SENT
        return {
            "target": delivery.target,
            "delivered": is_delivered,
            "error": None if is_delivered else (current.error if current else "it was forgotten"),
        }

    def document(self, limit: int) -> dict[str, Any]:
        """Targets and the newest alerts, without anything secret. Blocks."""
        outbox = self._open()
        settings = self.settings
        alerts = [] if outbox is None else outbox.newest(limit)
        return {
            "targets": {name: self._target(name, each, outbox) for name, each in settings.targets.items()},
            "problem": None if outbox is None else outbox.problem,
            "alerts": [
                {**alert.to_json(), "deliveries": [each.to_json() for each in deliveries]}
                for alert, deliveries in alerts
            ],
        }

    def _target(self, name: str, target: AlertTarget, outbox: Outbox | None) -> dict[str, Any]:
        waiting = None if outbox is None else outbox.next(name)
        return {
            "kind": "apprise" if not target.is_webhook else f"webhook ({target.format})",
            "where": target.url_file or target.webhook_file or str(target.webhook),
            "level": str(target.level),
            "services": None if target.services is None else list(target.services),
            "types": None if target.types is None else list(target.types),
            "waiting": 0 if outbox is None else outbox.waiting(name),
            "attempts": 0 if waiting is None else waiting.attempts,
            "next_at": None if waiting is None else waiting.next_at,
            "last_error": None if waiting is None else waiting.error,
            "problem": _problem_of(target),
        }

    def notes(self) -> list[str]:
        """What people should know, as sentences for the status. Blocks."""
        found = []
        outbox = self._outbox
        if outbox is not None and outbox.problem is not None:
            found.append(f"alerts: {outbox.problem}")
        for name, target in self.settings.targets.items():
            if (problem := _problem_of(target)) is not None:
                found.append(f"alert target {name}: {problem}")
            elif outbox is not None and (waiting := outbox.next(name)) is not None and waiting.error is not None:
                found.append(f"alert target {name}: {outbox.waiting(name)} alerts wait: {waiting.error}")
        return found

    # -- living ------------------------------------------------------------------------------------------------

    async def run(self, history: Callable[[int], Sequence[Operation]] | None = None) -> None:
        """Until cancelled; what was heard is on disk then, and attempts that are under way have a moment to end.

        `history` gives so many operations, the newest first: those that nobody could be told of before are told.
        """
        self.begin()
        if history is not None:
            self.catch_up(history)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.shield(asyncio.to_thread(self.stop))

    def stop(self) -> None:
        """Write what was heard, and end. Blocks for seconds at most."""
        deadline = time.monotonic() + _STOP_S
        self._heard.put(None)
        if self._writer.is_alive():
            self._writer.join(_STOP_S)
        self.is_stopping = True
        self.tell_changed()
        couriers = list(self._couriers.values())
        for courier in couriers:
            courier.poke()
        for courier in couriers:
            courier.thread.join(max(0.0, deadline - time.monotonic()))
        if self._outbox is not None:
            self._outbox.close()

    def tell_changed(self) -> None:
        """Wake whoever waits for the end of a delivery."""
        with self._changed:
            self._changed.notify_all()

    def ended(self, outbox: Outbox, delivery: Delivery) -> None:
        """A delivery is over or will be tried again; events say so where people should know."""
        outbox.change(delivery)
        self.tell_changed()
        topic, name = f"alerts to {delivery.target}", delivery.target
        if delivery.alert.type == TEST:
            return
        if delivery.state is State.SENT:
            if delivery.attempts > 1:
                words = f"alert target {name}: delivered at attempt {delivery.attempts}; {outbox.waiting(name)} wait"
                self._events.emit("alert-delivered-late", words)
            self._events.over(topic)
        elif delivery.state is State.PENDING:
            words = f"alert target {name}: not delivered: {delivery.error}; it is tried again"
            self._events.once(topic, "alert-not-delivered", words, level="warning")
        else:
            words = f"alert target {name}: gave up an alert after {delivery.attempts} attempts: {delivery.error}"
            self._events.emit("alert-given-up", f"{words}; it said: {delivery.alert.title}", level="error")

    def outbox(self) -> Outbox | None:
        """The outbox, if there is one."""
        return self._outbox


class _Courier:
    """Carries what waits for one target, one after the other, in a thread."""

    def __init__(self, alerts: Alerts, target: str) -> None:
        self._alerts = alerts
        self._target = target
        self._poked = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"lbswitch-alerts-{target}", daemon=True)

    def poke(self) -> None:
        """There may be something to do. From any thread."""
        self._poked.set()

    def _run(self) -> None:
        while not self._alerts.is_stopping:
            self._poked.clear()
            pause_s = self._carry()
            if pause_s > 0 and not self._alerts.is_stopping:
                self._poked.wait(pause_s)

    def _carry(self) -> float:
        """Do what is due; gives how many seconds there is nothing to do."""
        outbox = self._alerts.outbox()
        delivery = None if outbox is None else outbox.next(self._target)
        if outbox is None or delivery is None:
            return _LOOK_EVERY_S
        settings = self._alerts.settings
        target = settings.targets.get(self._target)
        now = time.time()
        if target is None:
            return self._wait_for_settings(outbox, delivery, settings, now)
        if now < delivery.next_at <= now + _MOST_WAIT_S:
            return delivery.next_at - now
        self._alerts.ended(outbox, self._attempt(outbox, delivery, target, settings))
        return 0.0

    def _wait_for_settings(self, outbox: Outbox, delivery: Delivery, settings: AlertsConfig, now: float) -> float:
        if now - delivery.told_at < settings.give_up_after:
            return _LOOK_EVERY_S
        error = "its target is not configured any more"
        self._alerts.ended(outbox, replace(delivery, state=State.GIVEN_UP, ended_at=now, error=error))
        return 0.0

    def _attempt(self, outbox: Outbox, delivery: Delivery, target: AlertTarget, settings: AlertsConfig) -> Delivery:
        begun = replace(delivery, state=State.SENDING, attempts=delivery.attempts + 1)
        outbox.change(begun)
        try:
            self._alerts.send(target, begun, self._alerts.host, settings.timeout)
        except NotDelivered as error:
            return self._failed(begun, error, settings)
        except Exception as error:
            return self._failed(begun, NotDelivered(f"unexpected {type(error).__name__}"), settings)
        return replace(begun, state=State.SENT, ended_at=time.time(), error=None)

    def _failed(self, begun: Delivery, error: NotDelivered, settings: AlertsConfig) -> Delivery:
        now = time.time()
        if begun.alert.type == TEST:
            return replace(begun, state=State.GIVEN_UP, ended_at=now, error=str(error))
        if error.is_about_message and begun.attempts >= _REFUSED_AT_MOST:
            return replace(begun, state=State.GIVEN_UP, ended_at=now, error=str(error))
        if now - begun.told_at >= settings.give_up_after:
            words = f"{error}; not delivered within {format_duration(settings.give_up_after)}"
            return replace(begun, state=State.GIVEN_UP, ended_at=now, error=words)
        pause_s = retry_delay_s(begun.attempts, random.random())  # noqa: S311 - spreads retries
        return replace(begun, state=State.PENDING, next_at=now + pause_s, error=str(error))


def _problem_of(target: AlertTarget) -> str | None:
    """Why a target can't be told as it is configured."""
    files = [Path(each) for each in (target.url_file, target.webhook_file, target.secret_file) if each is not None]
    return next((problem for each in files if (problem := why_unusable(each)) is not None), None)
