"""What the owner's configuration makes of ours: who the workers are, and what keeps a switch from being seen."""

from __future__ import annotations

import os
import posixpath
import pwd
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lbswitch.balancers import nginx_config
from lbswitch.balancers.nginx_binary import Program
from lbswitch.balancers.nginx_config import NginxConfig, Place
from lbswitch.balancers.nginx_guest_files import HTTP_FILE, TRAFFIC_FILE, GuestFiles, server_file
from lbswitch.core.config import Config
from lbswitch.core.names import variable_name
from lbswitch.errors import CheckFailed

_BUILT = re.compile(r"--(user|prefix|error-log-path)=(\S+)")
_MOST_LINES = 7  # of a first service, and two more
_OURS = re.compile(r"\$\{?(lbswitch_\w+)")
_NO_FILE = re.compile(r"stderr$|syslog:|memory:|/dev/")


@dataclass(frozen=True)
class Owner:
    """One look at the owner's configuration, with ours empty."""

    found: NginxConfig
    files: GuestFiles
    config: Config

    @classmethod
    def look(cls, config: Config, main: str, files: GuestFiles) -> Owner:
        """Read all files. Raises: CheckFailed when the main file can't be read."""
        try:
            texts = nginx_config.gather(main, files.read, files.names)
        except OSError as error:
            raise CheckFailed(f"{main}: {error.strerror or error}; it is named by balancer.config") from error
        return cls(nginx_config.load(texts, main), files, config)

    @property
    def paths(self) -> frozenset[Path]:
        """The owner's files, and the directories in which an include looks for more."""
        files = {Path(path) for path in self.found.texts if self.files.name_of(path) is None}
        patterns = (place.directive.args[0] for place in self.found.find("include") if place.directive.args)
        full = (nginx_config.full_path(one, self.found.main) for one in patterns if nginx_config.is_pattern(one))
        return frozenset(
            files | {Path(one).parent for one in full if not nginx_config.is_pattern(posixpath.dirname(one))}
        )

    def missing(self) -> list[str]:
        """The lines that the owner has yet to write, as sentences."""
        lines = list(self._missing_lines())
        if not lines:
            return []
        more = len(lines) - _MOST_LINES
        if more > 0:
            lines[_MOST_LINES:] = [f"and {more} more lines like these"]
        return [
            f"nginx does not use all of what lbswitch writes; its owner adds {'; '.join(lines)}; then reloads nginx"
        ]

    def _missing_lines(self) -> Iterator[str]:
        used = self._used()
        if not self.places(HTTP_FILE):
            yield f"`include {self.files.output}/current/{HTTP_FILE};` to the http block"
        for service in self.config.services:
            name, variable = server_file(service), f"lbswitch_{variable_name(service)}"
            if not self.places(name):
                yield f"`include {self.files.output}/current/{name};` to the server block of {service}"
            if variable not in used:
                yield f"`proxy_pass http://${variable};` to the location there that {service} serves"

    @property
    def has_ours(self) -> bool:
        """Whether any file of ours is included."""
        return bool(self._places)

    def places(self, name: str) -> list[Place]:
        """The includes of one of our files."""
        return self._places.get(name, [])

    @cached_property
    def _places(self) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for place in self.found.find("include"):
            for file in place.directive.files:
                name = self.files.name_of(file)
                if name is not None:
                    found.setdefault(name, []).append(place)
        return found

    def _used(self) -> frozenset[str]:
        """The variables of ours that some directive of the owner's names."""
        arguments = (argument for place in self.found.walk() for argument in place.directive.args)
        return frozenset(name for argument in arguments for name in _OURS.findall(argument))

    def hindrances(self) -> list[str]:
        """What in the owner's settings makes a switch late, keeps it from being seen, or shows, as sentences."""
        services = (each for service in self.config.services for each in self._hindrances_of(service))
        return [*services, *self._hosts(), *self._logs()]

    def _logs(self) -> Iterator[str]:
        """An access_log, ours too, takes the place of those of the blocks around it."""
        for place in self.places(TRAFFIC_FILE):
            log = self.found.effective("access_log", place.around)
            if log is not None and not any(
                each.directive is log and each.around == place.around for each in self.found.find("access_log")
            ):
                yield (
                    f"{place.directive.where}: `{log};` ({log.where}) does not hold where traffic.conf is included, so "
                    "requests are missing there: write it beside that include, too"
                )

    def _hindrances_of(self, service: str) -> Iterator[str]:
        for place in self.places(server_file(service)):
            where = f"at {place.directive.where}, where {service} is included"
            cache = self.found.effective("open_file_cache", place.around)
            if cache is not None and cache.args[:1] != ("off",):
                yield (
                    f"{cache} ({cache.where}) is active {where}: a switch is seen only when that cache forgets; "
                    "write `open_file_cache off;` into this server block"
                )
            links = self.found.effective("disable_symlinks", place.around)
            if links is not None and links.args[:1] != ("off",):
                yield (
                    f"{links} ({links.where}) is active {where}: nginx can't follow the pointer; write "
                    "`disable_symlinks off;` into this server block, and the rule into the locations that need it"
                )
            if self._needs_underscores(service, place):
                yield (
                    f"services.{service}.weights.sticky names a header with _, which nginx drops {where}: write "
                    "`underscores_in_headers on;` into the first server block of that address"
                )

    def _hosts(self) -> Iterator[str]:
        """Without a word about it, nginx sends the name of the upstream as Host, and ours is the color's."""
        for place in self.found.find("proxy_pass"):
            if not _OURS.search(" ".join(place.directive.args)):
                continue
            headers = self.found.effective_all("proxy_set_header", place.around)
            if not any(header.args and header.args[0].lower() == "host" for header in headers):
                yield (
                    f"{place.directive.where}: the servers get the name of a pool as Host header, another one for each "
                    "color: write `proxy_set_header Host $host;` beside that proxy_pass"
                )

    def _needs_underscores(self, service: str, place: Place) -> bool:
        weights = self.config.services[service].weights
        if weights is None or weights.sticky_by != "header" or "_" not in weights.sticky_name:
            return False
        setting = self.found.effective("underscores_in_headers", place.around)
        return setting is None or setting.args[:1] != ("on",)

    def keeps_idle_connections(self) -> bool:
        """Whether a reload leaves idle connections open for a while (keepalive_min_timeout, nginx 1.27.4)."""
        found = [place.directive.args for place in self.found.find("keepalive_min_timeout")]
        return bool(found) and all(args[:1] not in (("0",), ("0s",)) for args in found)

    def worker_user(self, program: Program, master: int | None) -> pwd.struct_passwd | None:
        """Who the workers are; None when this host does not know that user."""
        starter = _starter(master)
        with suppress(KeyError):
            if starter != 0:
                return pwd.getpwuid(starter)
            user = next((place.directive for place in self.found.find("user") if not place.path), None)
            return pwd.getpwnam(
                user.args[0] if user is not None and user.args else built(program).get("user", "nobody")
            )
        return None

    def error_log(self, program: Program, prefix: str | None) -> Path | None:
        """The file to which the master tells why it refuses a reload; None when it is no file."""
        named = next((place.directive.args for place in self.found.find("error_log") if not place.path), None)
        path = named[0] if named else built(program).get("error-log-path", "logs/error.log")
        if _NO_FILE.match(path):
            return None
        return Path(prefix or built(program).get("prefix", "/usr/local/nginx"), path)


def built(program: Program) -> dict[str, str]:
    """User, prefix and error log that this nginx was built with."""
    return dict(_BUILT.findall(program.arguments))


def _starter(master: int | None) -> int:
    """The uid that started it; of one that is down, root's if this is root, else ours."""
    if master is not None:
        with suppress(OSError):
            return Path(f"/proc/{master}").stat().st_uid
    return os.geteuid()
