"""The lines that the owner of a HAProxy writes into a frontend of theirs, once, for each service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lbswitch.balancers import control
from lbswitch.core.config import Config, Mode, ServiceConfig
from lbswitch.core.names import variable_name


def owner_lines(config: Config, service: str) -> list[str]:
    """What a frontend needs so that lbswitch decides the color of a service; without indentation.

    The last line, `use_backend`, may be given a condition (`if { req.hdr(host) -i shop.example }`); those before it
    need none. Raises: CheckFailed when HAProxy runs in a container that does not see `balancer.output_dir`.
    """
    return lines(config, service, control.make(config.balancer).seen)


def lines(config: Config, service: str, seen: Callable[[Path], Path]) -> list[str]:
    """The same, with `seen` to give a path of this host as HAProxy sees it."""
    directory = Path(config.balancer.output_dir or "/")
    live = f"str({service}),map({seen(directory / 'live.map')},{config.services[service].initial})"
    if config.services[service].weights is None:
        return [f"use_backend lbswitch_{service}_%[{live}]"]
    return list(_weighted(service, config.services[service], live, seen(directory / "weights.map")))


def _weighted(name: str, service: ServiceConfig, live: str, weights: Path) -> Iterator[str]:
    """A weight of 101 means that the traffic is not split; else buckets 0-99 below the weight go to green."""
    rule = "http-request" if service.mode is Mode.HTTP else "tcp-request content"
    color = f"txn.lbswitch_{variable_name(name)}"
    weight, bucket = f"{color}_weight", f"{color}_bucket"
    is_split = f"{{ var({weight}) -m int le 100 }}"
    yield f"{rule} set-var({color}) {live}"
    yield f"{rule} set-var({weight}) str({name}),map_str_int({weights},101)"
    yield f"{rule} set-var({bucket}) rand(100) if {is_split}"
    sticky = _sticky(service)
    if sticky is not None:
        sample, is_there = sticky
        yield f"{rule} set-var({bucket}) {sample},crc32(1),mod(100) if {is_split} {is_there}"
    yield f"{rule} set-var({color}) str(blue) if {is_split}"
    yield f"{rule} set-var({color}) str(green) if {is_split} {{ var({bucket}),sub({weight}) -m int lt 0 }}"
    yield f"use_backend lbswitch_{name}_%[var({color})]"


def _sticky(service: ServiceConfig) -> tuple[str, str] | None:
    """What a client is told apart by, and the condition that it is there; None when every request draws."""
    by, name = (service.weights.sticky_by, service.weights.sticky_name) if service.weights else ("none", "")
    if by == "cookie":
        return f"req.cook({name})", f"{{ req.cook({name}) -m len gt 0 }}"
    if by == "header":
        return f"req.fhdr({name})", f"{{ req.fhdr({name}) -m len gt 0 }}"
    return ("src", "{ src -m found }") if by == "address" else None
