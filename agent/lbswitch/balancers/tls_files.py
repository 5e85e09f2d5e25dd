"""The certificates and keys that services name: everything that is wrong with them, at once and in plain words."""

from __future__ import annotations

import os
import pwd
import ssl
from collections.abc import Iterator
from pathlib import Path

from lbswitch.core.config import Config, TlsConfig

_TOO_WEAK = ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")  # how strong is enough, the balancer judges


class Encrypted(Exception):
    """The key asks for a password."""


def problems(config: Config, *, may_be_encrypted: bool) -> list[str]:
    """What keeps the balancer from using these files, a line each: `services.NAME.tls.cert: PATH ...`.

    `may_be_encrypted`: a key with a password is no problem here, since a template may say where the password is.
    """
    return [
        f"services.{name}.tls.{problem}"
        for name, service in config.services.items()
        if service.tls is not None
        for problem in _problems(service.tls, may_be_encrypted)
    ]


def paths(config: Config) -> list[Path]:
    """All of these files."""
    found = (service.tls for service in config.services.values() if service.tls is not None)
    return [Path(path) for tls in found for path in (tls.cert, tls.key)]


def _problems(tls: TlsConfig, may_be_encrypted: bool) -> list[str]:
    unreadable = [*_unreadable("cert", tls.cert), *_unreadable("key", tls.key)]
    return unreadable or list(_unfit(tls, may_be_encrypted))


def _unreadable(kind: str, path: str) -> Iterator[str]:
    try:
        Path(path).open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        yield f"{kind}: {path} does not exist"
    except PermissionError:
        yield f"{kind}: {path} can't be read by this user ({user_name()}): run lbswitch check as root"
    except OSError as error:
        yield f"{kind}: {path}: {error.strerror}"


def _unfit(tls: TlsConfig, may_be_encrypted: bool) -> Iterator[str]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password=_no_password)
    except Encrypted:
        if not may_be_encrypted:
            yield f"key: {tls.key} is encrypted, and the balancer can't ask anybody for its password"
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason not in _TOO_WEAK:
            yield f"key: {tls.key} does not fit tls.cert {tls.cert}, or one of them is not PEM: {reason}"


def _no_password() -> str:
    raise Encrypted


def user_name() -> str:
    """Who this process is, by name where there is one."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
