"""The line by which HAProxy tells of each request: written by its configuration, read by the agent.

A line is one datagram, and its fields are separated by tabs: a mark, process and frontend, how many lines of that
frontend there were before, the time in ms, the timers, who answered and how it ended, method, path (of a `mode: tcp`
connection the bytes in both directions), request id. See sections 8.2.4 and 8.5 of HAProxy's configuration manual. The
number of lines tells the reader of those that it missed.
"""

from __future__ import annotations

from collections.abc import Sequence

SOCKET = "traffic.sock"
"""Where lines are sent to, in the directory of the maps."""
MARK = b"lbswitch1"
_COMMON = r"\t{mark}\t%pid %f\t%lc\t%[date(0,ms)]\t%Tw/%Tc/{answer}\t%b %s {status} %ts %rc\t{rest}\t"
_HTTP = {"answer": "%Tr/%Ta", "status": "%ST", "rest": r"%HM\t%HPO\t%[var(txn.lbswitch_id)]"}
_TCP = {"answer": "0/0", "status": "0", "rest": r"TCP\t%U/%B\t-"}
_LENGTH = 4096


def log_format(*, is_http: bool) -> str:
    """What stands between the quotes of `log-format` and of `log-format-sd`."""
    return _COMMON.format(mark=MARK.decode(), **(_HTTP if is_http else _TCP))


def log_target(socket: object, style: str = "raw") -> str:
    """The arguments of `log`: who sends and nobody listens, or too slowly, is not held up and tells nobody."""
    return f"{socket} len {_LENGTH} format {style} local0 info"


def owner_lines(socket: object, *, is_http: bool, has_format: bool = True) -> Sequence[str]:
    """What a frontend of somebody else's needs, beside any log of its owner's and whatever format that has.

    The fields travel as the structured data of an RFC 5424 line, whose message is the owner's own. There has to be a
    format for that message: without one HAProxy tells of connections when they begin.
    """
    return (
        f"log {log_target(socket, 'rfc5424')}",
        f'log-format-sd "{log_format(is_http=is_http)}"',
        *(() if has_format else (f"option {'http' if is_http else 'tcp'}log",)),
    )
