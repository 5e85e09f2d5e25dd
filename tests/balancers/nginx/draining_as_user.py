"""Run as a program: looks at nginx's connections as an ordinary user; prints what it sees. Not a test by itself.

Arguments: the master's pid, and the address of blue's server. Root becomes that user; who is another one stays so.
"""

import codecs
import json
import os
import pwd
import socket
import sys

from lbswitch.balancers.nginx_draining import NginxDraining
from lbswitch.core.config import Config
from lbswitch.core.model import Color, PoolKey
from lbswitch.core.values import parse_endpoint
from lbswitch.errors import BalancerError

_POOL = PoolKey("shop", Color.BLUE)


def main() -> None:
    master, blue = int(sys.argv[1]), sys.argv[2]
    pools = {"blue": {"servers": [blue]}, "green": {"servers": ["127.0.0.1:1"]}}
    services = {"shop": {"bind": "127.0.0.1:80", **pools}}
    config = Config.model_validate({"balancer": {"kind": "nginx"}, "services": services})
    draining = NginxDraining(config, lambda: master, is_ours=True, is_inside=False)
    draining.held([_POOL])  # Python may be installed where only root can read: what is imported late comes now
    codecs.lookup("idna")
    if os.geteuid() == 0:
        user = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
    endpoint = parse_endpoint(blue)
    with socket.create_connection((endpoint.host, endpoint.port)):  # as a check of the server's health has one
        print(json.dumps(told(draining)))


def told(draining: NginxDraining) -> dict[str, object]:
    try:
        draining.close(_POOL, 1)
        error = "closed"
    except BalancerError as refused:
        error = str(refused)
    return {
        "held": [[one.pid, one.is_old, one.count] for one in draining.held([_POOL])[_POOL] or ()],
        "why": draining.why_not_closed(),
        "error": error,
        "old": draining.end_old_workers(0),
    }


if __name__ == "__main__":
    main()
