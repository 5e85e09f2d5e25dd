# shellcheck shell=bash
# What the scripts share: a Python environment and the distribution's programs. Source it; bash only.
#
#   ROOT                         the repository
#   PYTHON                       the interpreter of $ROOT/.venv, after ensure_python_env
#   ensure_python_env [EXTRA...] make $ROOT/.venv and install `.[dev,EXTRA...]` in it, editable. Quick when nothing changed.
#   ensure_packages NAME...      install what is missing with apt-get. Daemons are neither started nor enabled at boot.
#                                Fails when something is still missing; MISSING_PACKAGES then lists it.
#   say WORDS, fail WORDS        to stderr; `fail` also exits with 1.
#
# LBSWITCH_NO_PACKAGES=1 never calls apt-get, as if this user were neither root nor allowed to use sudo.
# LBSWITCH_PYTHON names the interpreter to make .venv with, when the first one found is not the right one.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)"
PYTHON="$ROOT/.venv/bin/python"
MISSING_PACKAGES=()
_LEAST_PYTHON="3.11"
_PYTHONS="${LBSWITCH_PYTHON:-python3 python3.13 python3.12 python3.11}"
# A user's PATH on Debian has no sbin, where nginx and haproxy are.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

fail() {
  say "$*"
  exit 1
}

# --- Python ---------------------------------------------------------------------------------------------------------

ensure_python_env() {
  local fingerprint extras
  fingerprint="$(cat "$ROOT/pyproject.toml" "$ROOT/agent/lbswitch/__init__.py" | sha256sum | cut -c1-16) $ROOT"
  extras=" dev $* "
  if _python_env_has "$fingerprint" "$extras"; then return 0; fi
  # The lock is on a file that exists anyway: two scripts that start together install once.
  exec 8<"$ROOT/pyproject.toml"
  flock 8
  if ! _python_env_has "$fingerprint" "$extras"; then _make_python_env "$fingerprint" "$extras"; fi
  exec 8<&-
}

_python_env_has() {
  local line extra
  [ -x "$PYTHON" ] && [ -f "$ROOT/.venv/lbswitch-setup" ] || return 1
  mapfile -t line <"$ROOT/.venv/lbswitch-setup"
  [ "${line[0]-}" = "$1" ] || return 1
  for extra in $2; do
    case " ${line[1]-} " in *" $extra "*) ;; *) return 1 ;; esac
  done
}

_make_python_env() {
  local fingerprint="$1" extras="$2" base record="$ROOT/.venv/lbswitch-setup"
  if [ ! -x "$PYTHON" ] || ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    base="$(_find_python)" || exit 1
    say "making .venv with $base ($("$base" --version))"
    "$base" -m venv --clear "$ROOT/.venv" || fail "$base could not make $ROOT/.venv"
  fi
  if [ -f "$record" ]; then extras="$extras $(sed -n 2p "$record")"; fi
  # shellcheck disable=SC2086 # split on purpose
  extras="$(printf '%s\n' $extras | sort -u | paste -sd' ')"
  rm -f "$record"
  say "installing lbswitch with the extras $extras in .venv"
  (cd "$ROOT" && "$PYTHON" -m pip install -qq --disable-pip-version-check --editable ".[${extras// /,}]") ||
    fail "pip could not install the dependencies; its message is above"
  printf '%s\n%s\n' "$fingerprint" "$extras" >"$record"
}

# The first interpreter that is new enough and can make an environment, by name. What is missing is installed.
_find_python() {
  local python
  if ! python="$(_new_enough_python)"; then
    ensure_packages python3 python3-venv >&2 || true
    python="$(_new_enough_python)" || fail "no Python >= $_LEAST_PYTHON among ${_PYTHONS// /, }: install one" \
      "(on Ubuntu 22.04: apt-get install python3.11 python3.11-venv) or name it in LBSWITCH_PYTHON"
  fi
  if ! _can_make_env "$python"; then
    ensure_packages "$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")')" >&2 || true
    _can_make_env "$python" || fail "$python lacks the venv module: install the package python3-venv"
  fi
  printf '%s\n' "$python"
}

_new_enough_python() {
  local name
  for name in $_PYTHONS; do
    if "$name" -c "import sys; sys.exit(sys.version_info < (${_LEAST_PYTHON/./, }))" >/dev/null 2>&1; then
      command -v "$name"
      return 0
    fi
  done
  return 1
}

_can_make_env() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# --- The distribution's packages ------------------------------------------------------------------------------------

ensure_packages() {
  local as_root
  _find_missing "$@"
  if [ ${#MISSING_PACKAGES[@]} -eq 0 ]; then return 0; fi
  if as_root=$(_root_prefix); then
    say "installing ${MISSING_PACKAGES[*]} from the distribution"
    $as_root bash -c "$_INSTALL" install "${MISSING_PACKAGES[@]}" >&2 || say "apt-get could not install ${MISSING_PACKAGES[*]}"
    _find_missing "$@"
  else
    say "missing: ${MISSING_PACKAGES[*]}. They are not installed, because $as_root"
  fi
  [ ${#MISSING_PACKAGES[@]} -eq 0 ]
}

_find_missing() {
  local name
  MISSING_PACKAGES=()
  for name in "$@"; do
    if [ -x "$(type -P "$name")" ] || _is_installed "$name"; then continue; fi
    MISSING_PACKAGES+=("$name")
  done
}

_is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# How to become root: nothing, or sudo. Else fails and says why.
_root_prefix() {
  if [ -n "${LBSWITCH_NO_PACKAGES-}" ]; then echo "LBSWITCH_NO_PACKAGES is set"
  elif ! command -v apt-get >/dev/null; then echo "there is no apt-get on this system"
  elif [ "$(id -u)" -eq 0 ]; then return 0
  elif ! command -v sudo >/dev/null; then echo "this user is not root and there is no sudo"
  elif sudo -n true 2>/dev/null; then echo "sudo -n"; return 0
  elif [ -t 0 ]; then echo "sudo"; return 0
  else echo "this user is not root and sudo wants a password"
  fi
  return 1
}

# Runs as root with the packages as arguments. A package must not start its daemon here (it would take port 80, and this
# may be somebody's machine): policy-rc.d says no for as long as apt-get runs, and what came is not enabled at boot.
# shellcheck disable=SC2016 # expands in the root shell
_INSTALL='
set -eu
exec 9>/run/lbswitch-setup.lock
flock 9
policy=/usr/sbin/policy-rc.d
if [ -e "$policy" ]; then
  for name in "$@"; do
    refused=0
    "$policy" "$name" start >/dev/null 2>&1 || refused=$?
    if [ "$refused" -ne 101 ]; then
      echo "$policy exists and would let $name start: install $* by hand" >&2
      exit 1
    fi
  done
else
  trap "rm -f $policy" EXIT
  trap "exit 130" INT
  trap "exit 143" TERM HUP
  printf "#!/bin/sh\nexit 101\n" >"$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
apt-get -qq -o DPkg::Lock::Timeout=300 update
apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >/dev/null
for name in "$@"; do
  units="$name.service"
  if [ "$name" = docker.io ]; then name=docker units="docker.service docker.socket containerd.service"; fi
  if [ ! -e "/lib/systemd/system/$name.service" ] && [ ! -e "/etc/init.d/$name" ]; then continue; fi
  if command -v systemctl >/dev/null; then
    systemctl --quiet disable $units >/dev/null 2>&1 || echo "could not disable $name at boot" >&2
  else
    for unit in $units; do rm -f /etc/systemd/system/*.target.wants/"$unit"; done
    if command -v update-rc.d >/dev/null; then update-rc.d "$name" disable >/dev/null 2>&1 || true; fi
  fi
done
'
