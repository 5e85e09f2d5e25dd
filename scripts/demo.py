"""The demonstration behind `scripts/demo`: switch, break, watch it go back, and account for every request."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from tests.support.agent import Agent, make_short_directory
from tests.support.app import App
from tests.support.load import Load, Report
from tests.support.ports import free_port
from tests.support.wait import wait_until

ROOT = Path(__file__).resolve().parents[1]
SERVICE = "shop"
RECOVERY_DEADLINE_S = 15.0
REQUEST_TIMEOUT_S = 5.0
_PHASES = {
    "start": "before the switch",
    "switch": "during and after the switch",
    "outage": "green dead",
    "recovered": "back on blue",
}


class Story:
    """What the reader sees: plain text, colored only on a terminal, nothing at all with --json."""

    def __init__(self, *, is_silent: bool) -> None:
        self._is_silent = is_silent
        self._is_colored = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def title(self, text: str) -> None:
        self._write("\n" + self._paint("1", f"== {text} =="))

    def tell(self, text: str) -> None:
        self._write("\n" + textwrap.fill(text, 100))

    def fact(self, what: str, value: str) -> None:
        self._write(f"  {what:<46} {value}")

    def typed(self, command: str) -> None:
        self._write("\n" + self._paint("1", f"$ {command}"))

    def said(self, text: str) -> None:
        self._write(textwrap.indent(text.rstrip(), "  "))

    def verdict(self, text: str, *, is_good: bool) -> None:
        self._write(self._paint("32" if is_good else "31", text))

    def _write(self, text: str) -> None:
        if not self._is_silent:
            print(text, flush=True)

    def _paint(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self._is_colored else text


class Demo:
    """One balancer's turn. Everything that was started is undone by `close`, whatever happened."""

    def __init__(self, balancer: str, options: argparse.Namespace, story: Story) -> None:
        self.balancer = balancer
        self.options = options
        self.story = story
        self.version = ""
        self.port = free_port()
        directory = make_short_directory()
        self.apps = {
            color: App(color, version, log=directory / f"{color}.log")
            for color, version in (("blue", "v1"), ("green", "v2"))
        }
        self.agent = Agent(directory, self._config())
        self.load = Load("127.0.0.1", self.port, rate=options.rate, timeout_s=REQUEST_TIMEOUT_S, duration_s=120)
        self.problems: list[str] = []
        self.result: dict[str, Any] = {"balancer": balancer}

    def run(self) -> None:
        """The whole turn. Raises: whatever went wrong; `result` has what is known by then."""
        self._set_up()
        self._show_status()
        switch = self._switch()
        failover = self._break()
        self._account(self.load.stop(), switch, failover)

    def close(self) -> None:
        """Leave nothing behind."""
        with contextlib.ExitStack() as last:
            last.callback(shutil.rmtree, self.agent.directory, ignore_errors=True)
            for app in self.apps.values():
                last.callback(app.stop)
            last.callback(self._stop_agent)
            last.callback(self.load.close)

    def _stop_agent(self) -> None:
        try:
            self.agent.stop()
        finally:
            left = self.agent.balancer_stop()
            if left:
                self.problems.append(f"{left} processes of {self.balancer} outlived `lbswitch balancer stop`")

    def keep(self) -> None:
        """Leave it up, with green alive again, and say how to use and end it."""
        self.apps["green"].start()
        stop = self.agent.directory / "stop"
        stop.write_text(
            _STOP.format(
                pids=" ".join(str(child.pid) for child in psutil.Process().children()),
                balancer_stop=shlex.join([*self.agent.argv, "balancer", "stop"]),
                directory=self.agent.directory,
            )
        )
        self.result["kept"] = {"config": str(self.agent.config_path), "stop": f"sh {stop}", "port": self.port}

    def show_kept(self) -> None:
        """What to type now."""
        self.story.title(f"{self.balancer} is still up")
        for line in (
            f'export LBSWITCH_CONFIG={self.agent.config_path} PATH="{ROOT}/.venv/bin:$PATH"',
            "lbswitch status --watch",
            "lbswitch green",
            f"curl http://127.0.0.1:{self.port}/",
            f"curl -X POST 'http://{self.apps['green'].address}/fail?health=503&traffic=500'    # or 0&...0",
            "lbswitch history",
            f"{self.result['kept']['stop']}    # ends all of it",
        ):
            self.story.said(line)

    # The steps

    def _set_up(self) -> None:
        blue, green = self.apps["blue"].start(), self.apps["green"].start()
        self.version = self._version()
        self.result["version"] = self.version
        self.story.title(f"{self.balancer} {self.version}")
        self.story.tell(f"Two applications run: blue (v1) on {blue.address} and green (v2) on {green.address}.")
        self.story.typed(f"cat {self.agent.config_path}")
        self.story.said(self.agent.config_path.read_text())
        self.story.typed("lbswitch agent &")
        began = time.monotonic()
        self.agent.start()
        self.story.said(
            f"ready after {_ms_since(began):.0f} ms; it has started {self.balancer} on 127.0.0.1:{self.port}"
        )
        self.load.start()
        wait_until(lambda: self.load.report().answered >= 10, "the client gets answers")
        self.story.tell(
            f"A client now sends {self.options.rate:g} requests a second all along, half of them on connections that "
            "it keeps, half on a new connection each. It never retries."
        )

    def _show_status(self) -> None:
        time.sleep(self.options.pause / 2)
        self._type("status")

    def _switch(self) -> dict[str, Any]:
        began = self.load.mark("switch")
        self._type("green", "--reason", "release v2")
        command_ms = _ms_since(began)
        time.sleep(self.options.pause)
        operation = self._operation("switch")
        phase = self.load.report().phase("switch")
        blue, green = phase.by("blue"), phase.by("green")
        self.story.fact("the command took", f"{command_ms:.0f} ms, of which the switch {operation['total']:.1f} ms")
        self.story.fact("last answer of blue after typing it", _moment(blue.last_ms if blue else None))
        self.story.fact("first answer of green after typing it", _moment(green.first_ms if green else None))
        self.story.fact("requests in this time", f"{phase.sent} sent, {phase.lost} lost")
        if green is None:
            self.problems.append("green gave no answer after the switch")
        return {
            "command_ms": round(command_ms, 1),
            "timings_ms": operation,
            "last_old_ms": blue.last_ms if blue else None,
            "first_new_ms": green.first_ms if green else None,
            "old_after_new_ms": max(0.0, round(blue.last_ms - green.first_ms, 3)) if blue and green else None,
        }

    def _break(self) -> dict[str, Any]:
        self.story.typed("kill -9 GREEN        # the new release crashes")
        killed = self.load.mark("outage")
        self.apps["green"].stop()
        seen_ms = self._wait_for_blue(killed)
        self.load.mark("recovered")
        time.sleep(self.options.pause)
        outage = _Outage(self.load.report())
        self.story.fact("first failed request after the kill", _moment(outage.first_loss_ms, "none so far"))
        self.story.fact("the agent was back on blue after", _moment(seen_ms))
        self.story.fact("first answer of blue after the kill", _moment(outage.recovery_ms))
        self.story.tell("Nobody typed anything. The history says why:")
        self._type("history", "-n", "2")
        return {
            "agent_ms": seen_ms,
            "timings_ms": self._operation("failover", "rollback"),
            "reason": self._last_operation("failover", "rollback").get("reason"),
        }

    def _wait_for_blue(self, since: float) -> float | None:
        """Milliseconds until the agent says that blue is live and verified, or None."""
        try:
            wait_until(self._is_back_on_blue, "the agent goes back to blue", RECOVERY_DEADLINE_S)
        except AssertionError as error:
            self.problems.append(f"no rollback seen: {error}")
            return None
        return round(_ms_since(since), 1)

    def _is_back_on_blue(self) -> bool:
        status = self.agent.status(SERVICE)
        return status["live"] == "blue" and bool(status["verified"])

    # The account

    def _account(self, report: Report, switch: dict[str, Any], failover: dict[str, Any]) -> None:
        outage = _Outage(report)
        self.result |= {
            "sent": report.sent,
            "answered": {color: report.answered_by(color) for color in self.apps},
            "lost_in_switches": report.lost - outage.lost - outage.lost_after,
            "lost_in_outage": outage.lost,
            "lost_after_recovery": outage.lost_after,
            "lost_by_kind": report.lost_by_kind,
            "skipped": report.skipped,
            "switch": switch,
            "failover": {"recovery_ms": outage.recovery_ms, **failover, **outage.to_json()},
        }
        self._judge(report, outage)
        self._show_account(report, outage)

    def _judge(self, report: Report, outage: _Outage) -> None:
        if self.result["lost_in_switches"]:
            self.problems.append(
                f"{self.result['lost_in_switches']} requests were lost outside of the outage: {report}"
            )
        if outage.lost_after:
            self.problems.append(f"{outage.lost_after} requests were lost after the return to blue: {report}")
        if outage.oldest_in_flight_ms > 1000:
            self.problems.append(f"a request hung for {outage.oldest_in_flight_ms:.0f} ms before the outage")
        if outage.recovery_ms is None:
            self.problems.append("blue gave no answer after green had died")
        if report.sent != report.answered + report.lost:
            self.problems.append(f"{report.sent - report.answered - report.lost} requests are not accounted for")

    def _show_account(self, report: Report, outage: _Outage) -> None:
        self.story.tell(f"What became of {report.sent} requests, by when they ended:")
        self.story.said(f"{'':<30}{'sent':>8}{'blue':>8}{'green':>8}{'lost':>8}")
        for phase in report.phases:
            counts = (phase.sent, phase.answered_by("blue"), phase.answered_by("green"), phase.lost)
            self.story.said(f"{_PHASES[phase.name]:<30}" + "".join(f"{count:>8}" for count in counts))
        if outage.lost:
            self.story.tell(
                f"A crash is not a switch: {outage.lost} requests ({outage.kinds}) that were sent before the return to "
                f"blue were lost, each after {outage.slowest_loss_ms:.0f} ms at most."
            )

    # Helpers

    def _config(self) -> dict[str, Any]:
        return {
            "balancer": {"kind": self.balancer},
            "services": {
                SERVICE: {
                    "bind": f"127.0.0.1:{self.port}",
                    "blue": {"servers": [self.apps["blue"].address]},
                    "green": {"servers": [self.apps["green"].address]},
                    "health": {"path": "/health", "interval": "200ms", "timeout": "200ms", "rise": 2, "fall": 2},
                }
            },
        }

    def _version(self) -> str:
        code, said = self.agent.lbswitch("check", "--json")
        if code != 0 or not isinstance(said, dict):
            raise RuntimeError(f"lbswitch check ended with {code}: {said}")
        return str(said["version"])

    def _type(self, *arguments: str) -> None:
        """Run a command as the reader would; one that fails is a problem."""
        self.story.typed(shlex.join(["lbswitch", *arguments]))
        code, said = self.agent.lbswitch(*arguments)
        self.story.said(said if isinstance(said, str) else json.dumps(said))
        if code != 0:
            self.problems.append(f"lbswitch {arguments[0]} ended with exit code {code}: {said}")

    def _last_operation(self, *kinds: str) -> dict[str, Any]:
        """The newest of these kinds: it is health checks or the traffic that find a crash first."""
        code, said = self.agent.lbswitch("history", "--json", "-n", "10")
        operations = said.get("operations", []) if code == 0 and isinstance(said, dict) else said
        return next((dict(one) for one in operations if one["kind"] in kinds), {})

    def _operation(self, *kinds: str) -> dict[str, float]:
        timings: dict[str, float] = self._last_operation(*kinds).get("timings_ms", {})
        return {"total": 0.0, **timings}


class _Outage:
    """What the crash cost, from the mark "outage" on; times in ms after it."""

    def __init__(self, report: Report) -> None:
        """Read the phases "outage" and "recovered". Raises: LookupError."""
        during, after = report.phase("outage"), report.phase("recovered")
        offset_ms = (after.started_s - during.started_s) * 1000
        still_out = min(after.lost, after.in_flight_before)  # sent before the return, given up after it
        self.lost = during.lost + still_out
        self.lost_after = after.lost - still_out
        self.oldest_in_flight_ms = during.oldest_in_flight_ms
        back_during, back_after = during.by("blue"), after.by("blue")
        self.recovery_ms = _first(
            back_during.first_ms if back_during else None, back_after.first_ms + offset_ms if back_after else None
        )
        self.first_loss_ms = _first(during.first_loss_ms, _plus(after.first_loss_ms, offset_ms))
        self.last_loss_ms = _first(_plus(after.last_loss_ms, offset_ms), during.last_loss_ms)
        self.slowest_loss_ms = max(during.slowest_loss_ms or 0.0, after.slowest_loss_ms or 0.0)
        kinds = Counter(during.lost_by_kind) + Counter(after.lost_by_kind)
        self.kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))

    def to_json(self) -> dict[str, float | None]:
        """The times."""
        return {name: getattr(self, name) for name in ("first_loss_ms", "last_loss_ms", "slowest_loss_ms")}


def _first(*moments: float | None) -> float | None:
    """The first that there is."""
    return next((round(moment, 3) for moment in moments if moment is not None), None)


def _plus(moment: float | None, offset: float) -> float | None:
    return None if moment is None else moment + offset


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000


def _moment(ms: float | None, never: str = "never") -> str:
    return never if ms is None else f"{ms:.1f} ms"


_STOP = """\
#!/bin/sh
# Ends what `scripts/demo --keep` left up.
for pid in {pids}; do
  kill $pid 2>/dev/null
  for _ in $(seq 100); do kill -0 $pid 2>/dev/null || break; sleep 0.1; done
done
{balancer_stop}
rm -rf {directory}
"""


def main() -> int:
    """Run the demonstration on each balancer; 0 when the promise held on all of them."""
    options = _options()
    _end_cleanly(keep=options.keep)
    story = Story(is_silent=options.json)
    began = time.monotonic()
    demos: list[Demo] = []
    interrupted = 0
    try:
        for balancer in options.balancer:
            demos.append(Demo(balancer, options, story))
            _run(demos[-1])
    except SystemExit as error:
        interrupted = int(error.code or 0)
    for demo in demos:
        if "kept" in demo.result and not interrupted:
            demo.show_kept()
    return interrupted or _conclude(demos, options, story, time.monotonic() - began)


def _run(demo: Demo) -> None:
    is_kept = False
    try:
        demo.run()
        if demo.options.keep:
            demo.keep()
            is_kept = True
    except Exception as error:  # whatever it was, it is told and the next balancer gets its turn
        demo.problems.append(f"{type(error).__name__}: {error}")
    finally:
        if not is_kept:
            with _uninterrupted():
                demo.close()


def _conclude(demos: list[Demo], options: argparse.Namespace, story: Story, seconds: float) -> int:
    """Say how it ended, the JSON line last."""
    for demo in demos:
        demo.result |= {"state": "broken" if demo.problems else "held", "problems": demo.problems}
        for problem in demo.problems:
            print(f"{demo.balancer}: {problem}", file=sys.stderr)
    holds = bool(demos) and not any(demo.problems for demo in demos)
    story.title("Result")
    for demo in demos:
        story.verdict(f"{demo.balancer} {demo.version}: {_summary(demo)}", is_good=not demo.problems)
    for name in options.left_out:
        story.verdict(f"{name}: left out, it is not installed", is_good=False)
    document = {
        "ok": holds,
        "seconds": round(seconds, 1),
        "balancers": [demo.result for demo in demos],
        "left_out": options.left_out,
    }
    print(json.dumps(document), flush=True)
    return 0 if holds else 1


def _summary(demo: Demo) -> str:
    if "sent" not in demo.result:
        return "did not get through, see above"
    result = demo.result
    return (
        f"{result['lost_in_switches']} of {result['sent']} requests lost by the switch; back on blue "
        f"{_moment(result['failover']['recovery_ms'])} after the crash, which cost {result['lost_in_outage']}"
    )


def _end_cleanly(*, keep: bool) -> None:
    """Ctrl-C, SIGTERM and a closed terminal end it in order; what is kept outlives the terminal."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, end)  # a shell starts background jobs with it ignored
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if keep else end)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Clean up to the end, however often Ctrl-C is pressed."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--balancer", action="append", choices=("nginx", "haproxy"), help="both by default")
    parser.add_argument("--left-out", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="leave it up to play with")
    parser.add_argument("--json", action="store_true", help="nothing but the line of JSON at the end")
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second (300)")
    parser.add_argument("--pause", type=float, default=2.5, help="seconds to watch before and after each step (2.5)")
    options = parser.parse_args()
    options.balancer = options.balancer or ["nginx", "haproxy"]
    return options


if __name__ == "__main__":
    sys.exit(main())
