"""All checks, in the order in which they are explained. docs/doctor.md has the same table."""

from __future__ import annotations

from lbswitch.core.config import BalancerKind
from lbswitch.doctor import (
    agent,
    certificates,
    configuration,
    draining,
    haproxy_files,
    logs,
    nginx_files,
    servers,
    services,
    serving,
    sources,
    state,
)
from lbswitch.doctor.check import Check
from lbswitch.doctor.finding import Severity

_NGINX, _HAPROXY = BalancerKind.NGINX, BalancerKind.HAPROXY
_NOTE, _WARNING, _ERROR = Severity

CHECKS: tuple[Check, ...] = (
    # -- configuration and templates
    Check("config-invalid", "the configuration file can't be used", _ERROR, configuration.invalid),
    Check("config-not-in-use", "the agent goes on with an older configuration", _ERROR, configuration.not_in_use),
    Check("config-writable", "others can write what an agent that is root reads", _ERROR, configuration.rights),
    Check("template-older", "an override was made from another stock template than this version's", _WARNING,
          configuration.older_templates),
    Check("balancer-missing", "the balancer's program is missing or too old", _ERROR, configuration.program),
    Check("change-refused", "what would be rendered next is refused by the checker", _ERROR, configuration.refused),
    Check("balancer-warning", "what lbswitch's own part for the balancer warns of", _WARNING,
          configuration.warnings, None, "managed"),
    Check("reload-costs", "`switching: reload` on an nginx before 1.27.4, which cuts idle connections", _WARNING,
          configuration.costly_reloads, _NGINX),
    # -- what is served
    Check("balancer-down", "the balancer does not run", _ERROR, serving.down),
    Check("listener", "a service's listener does not answer as lbswitch's would", _ERROR, serving.listener),
    Check("port-taken", "others hold a port that the balancer needs to start", _ERROR, serving.ports, None, "managed"),
    Check("drift", "files, pointer, maps or the running balancer were changed by others", _WARNING, serving.drift),
    Check("not-applied", "configuration and templates render to something else than is installed", _WARNING,
          serving.not_applied),
    Check("no-restart", "the balancer would not start with what is on disk", _ERROR, serving.no_restart),
    Check("cannot-close", "`drain` says `close`, but connections can't be closed from here", _WARNING,
          draining.cannot_close),
    Check("old-workers", "workers from before reloads stay (a note: fewer than `balancer.old_workers`, over 10 min)",
          _WARNING, draining.old_workers),
    # -- state and disk
    Check("state-missing", "there is no state directory yet", _NOTE, state.never_started),
    Check("state-volatile", "the state directory is lost at a reboot, or cleaned away", _ERROR, state.volatile),
    Check("not-writable", "the agent's user may not write where the agent has to", _ERROR, state.unwritable),
    Check("disk-space", "less than 512 MiB or 10,000 inodes are free (error: 64 MiB, 1,000)", _ERROR, state.space),
    Check("log-unrotated", "a log above 100 MiB that logrotate does not know", _WARNING, logs.unrotated),
    Check("pointer-unreadable", "nginx's workers may not read the pointer", _ERROR, state.unreadable_pointer, _NGINX),
    Check("workers-root", "nginx's workers run as root", _WARNING, state.root_workers, _NGINX),
    # -- nginx
    Check("open-file-cache", "`open_file_cache` is active where the pointer is tested", _ERROR,
          nginx_files.cached_pointer, _NGINX),
    Check("include-missing", "nothing includes lbswitch's file, or the path is another one", _ERROR,
          nginx_files.not_included, _NGINX, "guest"),
    Check("include-misplaced", "lbswitch's file is included in the wrong block", _ERROR, nginx_files.misplaced, _NGINX,
          "guest"),
    Check("not-passed", "no proxy_pass uses `$lbswitch_SERVICE`", _ERROR, nginx_files.not_passed, _NGINX, "guest"),
    Check("bare-slash", "`proxy_pass http://$lbswitch_SERVICE/;` asks for / only", _WARNING, nginx_files.bare_slash,
          _NGINX, "guest"),
    Check("disable-symlinks", "`disable_symlinks` is active where the pointer is tested", _ERROR, nginx_files.symlinks,
          _NGINX, "guest"),
    Check("underscores", "sticky by a header with `_`, which nginx drops", _WARNING, nginx_files.underscores, _NGINX,
          "guest"),
    Check("few-files", "worker_connections above the limit of open files", _WARNING, nginx_files.few_files, _NGINX),
    # -- HAProxy
    Check("no-master-socket", "HAProxy has no master socket, or it does not answer", _ERROR,
          haproxy_files.no_master_socket, _HAPROXY, "guest"),
    Check("no-master", "HAProxy is not in master-worker mode", _ERROR, haproxy_files.no_master, _HAPROXY, "guest"),
    Check("not-loaded", "HAProxy does not load lbswitch's file", _ERROR, haproxy_files.not_loaded, _HAPROXY, "guest"),
    Check("other-files", "HAProxy runs with files that `balancer.config` does not name", _WARNING,
          haproxy_files.other_files, _HAPROXY, "guest"),
    Check("no-use-backend", "no frontend has lbswitch's use_backend line", _ERROR, haproxy_files.no_use_backend,
          _HAPROXY, "guest"),
    Check("other-map", "the use_backend line looks into another map, or lacks the lines for weights", _ERROR,
          haproxy_files.other_map, _HAPROXY, "guest"),
    Check("idle-close", "`option idle-close-on-response` is missing in that frontend", _WARNING,
          haproxy_files.cut_connections, _HAPROXY, "guest"),
    Check("hard-stop-after", "`hard-stop-after` is missing in global", _WARNING, haproxy_files.endless_workers,
          _HAPROXY, "guest"),
    # -- servers
    Check("same-server", "both colors reach the same server", _WARNING, servers.same),
    Check("unresolved", "a server's name does not resolve (HAProxy: a warning)", _ERROR, servers.unresolved),
    Check("health-odd", "a health path that is not there, or whose redirect passes", _WARNING, servers.odd_health),
    Check("health-alike", "the same process answers the health path of both colors (a note: nothing tells them apart)",
          _WARNING, servers.alike),
    Check("unhealthy", "the live color is unhealthy, or both; a warning: the idle one, so there is no way back",
          _ERROR, services.unhealthy),
    Check("unverified", "what is served is not seen at the listener", _ERROR, services.unverified),
    Check("frozen", "a service is frozen", _WARNING, services.frozen),
    Check("no-failover", "failover is disabled", _NOTE, services.no_failover),
    Check("never-switched", "the first switch was never done", _NOTE, services.no_previous),
    # -- TLS
    Check("certificate", "a certificate ended, or will within 14 days (a warning)", _ERROR, certificates.expiring),
    Check("key-readable", "everybody on this machine can read a TLS key", _WARNING, certificates.open_keys),
    # -- metrics from elsewhere
    Check("sources", "a source of metrics gives no value (a note: what the others give)", _WARNING, sources.unread),
    Check("secret-readable", "everybody on this machine can read a secret of a source", _WARNING,
          sources.open_secrets),
    # -- the agent and the machine
    Check("agent-unreachable", "no agent answers (a warning: this user may not ask it)", _ERROR, agent.unreachable),
    Check("socket-open", "everybody on this machine may switch, or control HAProxy", _WARNING, agent.open_socket),
    Check("agent-version", "the agent that runs is of another version", _WARNING, agent.other_version),
    Check("agent-boot", "the agent does not start after a reboot", _WARNING, agent.not_enabled),
    Check("balancer-boot", "the owner's balancer does not start after a reboot", _WARNING, agent.balancer_not_enabled,
          None, "guest"),
    Check("balancer-unit", "the managed balancer has no unit of its own", _NOTE, agent.no_unit, None, "managed"),
    Check("same-unit", "stopping the agent's unit would stop the managed balancer", _ERROR, agent.same_unit, None,
          "managed"),
    Check("clock-unsynchronized", "the clock is not synchronized", _NOTE, agent.clock),
    Check("clock-jump", "the clock jumped by more than 10 s since the agent started", _WARNING, agent.jump),
)  # fmt: skip
