"""The ways of switching, each on a site of its own."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from tests.faults.site import HAProxyGuestSite, NginxGuestSite, Site


class Way:
    """How traffic is moved. `prepare` makes the next `command` do all of it; `wanted` are green's shares after it."""

    def __init__(self, name: str, make: Callable[[], Site]) -> None:
        self.name, self.make = name, make

    @property
    def kind(self) -> str:
        """Which balancer."""
        return self.name.partition(" ")[0]

    def prepare(self, site: Site) -> None:
        """Nothing: it begins with whatever color serves."""

    def command(self, site: Site) -> list[str]:
        share = next(iter(site.shares().values()))
        return ["blue" if share == 100 else "green"]

    def wanted(self, site: Site, command: list[str]) -> dict[str, int]:
        """Green's percentage of each service when the command was carried out."""
        return dict.fromkeys(site.names, 100 if command[0] == "green" else 0)


class All(Way):
    """Several services at one instant."""

    def command(self, site: Site) -> list[str]:
        return [*super().command(site), "--all"]


class Weight(Way):
    """Another weight; nothing is reloaded for it."""

    def command(self, site: Site) -> list[str]:
        return ["green", "--weight", "60" if site.shares()["shop"] == 30 else "30"]

    def wanted(self, site: Site, command: list[str]) -> dict[str, int]:
        return {"shop": int(command[-1])}


class FirstWeight(Weight):
    """The first weight of a service, for which nginx gets buckets and is reloaded."""

    def prepare(self, site: Site) -> None:
        site.switch("blue")
        with contextlib.closing(sqlite3.connect(site.directory / "state" / "lbswitch.db", timeout=10)) as database:
            is_weighted = database.execute("SELECT max(weighted) FROM service").fetchone()[0]
        if is_weighted:
            site.agent.stop()
            site.unweighted()
            site.agent.start()
            site.until_well()


class Rollback(Way):
    """Back to what was serving before."""

    def prepare(self, site: Site) -> None:
        site.switch("blue" if site.shares()["shop"] == 100 else "green")

    def command(self, site: Site) -> list[str]:
        return ["rollback"]

    def wanted(self, site: Site, command: list[str]) -> dict[str, int]:
        return {"shop": 100 - site.shares()["shop"]}


class Restore(Way):
    """A snapshot from before an edit and a switch."""

    def prepare(self, site: Site) -> None:
        site.switch("blue")
        document: dict[str, Any] = yaml.safe_load(site.agent.config_path.read_text())
        timeouts = document["services"]["shop"].setdefault("timeouts", {})
        timeouts["read"] = "7s" if timeouts.get("read") == "8s" else "8s"
        site.agent.write_config(document)
        code, answer = site.agent.http("POST", "/v1/apply", {"force": True})
        assert (code, answer["configuration"]) in ((200, "applied"), (200, "unchanged")), answer
        site.switch("green")

    def command(self, site: Site) -> list[str]:
        code, listed = site.agent.http("GET", "/v1/snapshots?limit=50")
        assert code == 200, listed
        number = next(each["id"] for each in listed["snapshots"] if each["purpose"] == "configuration")
        return ["restore", str(number)]

    def wanted(self, site: Site, command: list[str]) -> dict[str, int]:
        return {"shop": 0}


def all_ways() -> Mapping[str, Way]:
    """By name, which begins with the balancer's."""
    two = ("shop", "cart")
    ways = [
        Way("nginx pointer", lambda: Site("nginx")),
        Way("nginx reload", lambda: Site("nginx", switching="reload")),
        FirstWeight("nginx first weight", lambda: Site("nginx")),
        Weight("nginx weight", lambda: Site("nginx", weights={})),
        All("nginx all", lambda: Site("nginx", two)),
        Rollback("nginx rollback", lambda: Site("nginx")),
        Way("nginx guest", NginxGuestSite),
        Restore("nginx restore", lambda: Site("nginx")),
        Way("haproxy map", lambda: Site("haproxy")),
        Way("haproxy reload", lambda: Site("haproxy", switching="reload")),
        Weight("haproxy weight", lambda: Site("haproxy")),
        All("haproxy all", lambda: Site("haproxy", two)),
        Rollback("haproxy rollback", lambda: Site("haproxy")),
        Way("haproxy guest", HAProxyGuestSite),
        Restore("haproxy restore", lambda: Site("haproxy")),
    ]
    return {way.name: way for way in ways}
