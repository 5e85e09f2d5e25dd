"""Defaults that are needed also where loading the typed configuration would take too long."""

from __future__ import annotations

CONFIG = "/etc/lbswitch/lbswitch.yaml"
STATE_DIR = "/var/lib/lbswitch"
SOCKET = "/run/lbswitch/agent.sock"
