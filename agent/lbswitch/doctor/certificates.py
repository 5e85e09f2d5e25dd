"""TLS: certificates that end, keys that others can read."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lbswitch.balancers.nginx_config import full_path
from lbswitch.core.config import Control
from lbswitch.doctor.case import Case
from lbswitch.doctor.finding import Finding, NotChecked, error, warning

_DAYS = 14
_DAY_S = 86400
_PEM = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?-----END [^-]+-----", re.DOTALL)
_SEQUENCE, _UTC_TIME, _GENERALIZED = 0x30, 0x17, 0x18
_EXPLICIT_0 = 0xA0  # the version, which a certificate may leave out


def expiring(case: Case) -> Iterator[Finding]:
    """A certificate ended, or will within 14 days."""
    unread: list[str] = []
    for path, service in _certificates(case):
        try:
            ends = min(_ends(pem) for pem in _PEM.findall(path.read_bytes())[:1])
        except PermissionError:
            unread.append(str(path))
            continue
        except (OSError, ValueError):
            continue  # unreadable or no certificate: the balancer's checker says so
        left_s = ends.timestamp() - case.host.now()
        day = ends.strftime("%Y-%m-%d %H:%M UTC")
        if left_s < 0:
            yield error(f"the certificate {path} ended at {day}: clients refuse it", "renew it now", service)
        elif left_s < _DAYS * _DAY_S:
            yield warning(
                f"the certificate {path} ends at {day}, in {left_s / _DAY_S:.1f} days (a warning below {_DAYS})",
                "renew it, and see why that does not happen by itself: systemctl list-timers",
                service,
            )
    if unread:
        raise NotChecked(f"{unread[0]} may not be read by this user: run it as root")


def open_keys(case: Case) -> Iterator[Finding]:
    """Everybody on this machine can read a key."""
    for path, service in _keys(case):
        try:
            mode = path.stat().st_mode
        except PermissionError:
            continue  # then not everybody can
        except OSError:
            continue
        if mode & 0o004 and all(directory.stat().st_mode & 0o001 for directory in path.resolve().parents):
            yield warning(
                f"everybody on this machine can read the key {path} (mode {mode & 0o7777:04o})",
                f"chmod o-r {path}",
                service,
            )


def _certificates(case: Case) -> Iterator[tuple[Path, str | None]]:
    for name, service in case.services.items():
        if service.tls is not None:
            yield Path(service.tls.cert), name
    yield from _of_owner(case, "ssl_certificate")


def _keys(case: Case) -> Iterator[tuple[Path, str | None]]:
    for name, service in case.services.items():
        if service.tls is not None:
            yield Path(service.tls.key), name
    yield from _of_owner(case, "ssl_certificate_key")


def _of_owner(case: Case, directive: str) -> Iterator[tuple[Path, str | None]]:
    """Those of an owner's nginx on this host."""
    if not (case.is_guest and case.is_nginx) or case.config.balancer.controlled_by is Control.DOCKER:
        return
    for place in case.nginx.find(directive):
        target = place.directive.args[0] if place.directive.args else ""
        if target and "$" not in target and ":" not in target:
            yield Path(full_path(target, case.nginx.main)), None


def _ends(pem: bytes) -> datetime:
    """`notAfter` of a certificate (RFC 5280, section 4.1). Raises: ValueError."""
    der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii").replace("TRUSTED ", "").replace("X509 ", ""))
    _, certificate, _ = _element(der)
    _, fields, _ = _element(certificate)
    tag, _, rest = _element(fields)
    if tag == _EXPLICIT_0:
        _, _, rest = _element(rest)  # the serial number
    for _ in ("signature", "issuer"):
        _, _, rest = _element(rest)
    tag, validity, _ = _element(rest)
    _, _, rest = _element(validity)
    tag, content, _ = _element(rest)
    return _time(tag, content.decode("ascii"))


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows of one DER element (X.690). Raises: ValueError."""
    if len(der) < 2:
        raise ValueError("ends in the middle")
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(der[2 : 2 + count], "big"), 2 + count
    return tag, der[start : start + length], der[start + length :]


def _time(tag: int, text: str) -> datetime:
    """UTCTime has two digits of the year: 50 and above are 19xx. Raises: ValueError."""
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED:
        raise ValueError(f"tag {tag:#x} is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
