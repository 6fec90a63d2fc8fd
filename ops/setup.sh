# Sourced by ops/quickstart, ops/test and ops/engines, at the root of the repository: the packages of ops/packages, and cargo.

set -euo pipefail

# What is said comes from the command's own name, on stderr, so that stdout stays for results.
say() { printf '%s: %s\n' "ops/${0##*/}" "$*" >&2; }

stop() { say "$*"; exit 1; }

# step WHAT USUALLY COMMAND…: says what it waits for and how long that usually takes, then does it.
step() {
    local what=$1 usually=$2
    shift 2
    say "$what (usually $usually)"
    "$@"
}

packages_wanted() {
    local others='^$'
    [[ ${0##*/} == quickstart ]] && others='# test:'
    sed -e "/$others/d" -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' ops/packages
}

packages_missing() {
    local package
    for package in $(packages_wanted); do
        [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

as_root() { if [[ $(id -u) == 0 ]]; then "$@"; else sudo "$@"; fi; }

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null; }

# without_database_server COMMAND…: Debian's PostgreSQL would make a server of the machine's own and start it. Nobody asked for that one.
without_database_server() {
    local folder=/etc/postgresql-common/createcluster.d result=0
    if ! packages_missing | grep -qx postgresql; then
        "$@"
        return
    fi
    as_root mkdir -p "$folder"
    echo "create_main_cluster = false" | as_root tee "$folder/muster.conf" >/dev/null
    "$@" || result=$?
    as_root rm -f "$folder/muster.conf"
    as_root rmdir --ignore-fail-on-non-empty "$folder"
    return "$result"
}

# without_monitoring_server COMMAND…: Debian's Prometheus would start a server, now and with each start of the machine. Only its promtool is wanted.
without_monitoring_server() {
    local policy=/usr/sbin/policy-rc.d made='' result=0
    if ! packages_missing | grep -qx prometheus; then
        "$@"
        return
    fi
    # One that is there already is somebody's decision.
    if [[ ! -e $policy ]]; then
        made=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    "$@" || result=$?
    [[ -z $made ]] || as_root rm -f "$policy"
    command -v systemctl >/dev/null && as_root systemctl --quiet disable prometheus 2>/dev/null
    return "$result"
}

install_packages() {
    local missing
    command -v dpkg-query >/dev/null || stop "this isn't Debian or a relative of it. Install what stands in ops/packages under its names here, then run again with MUSTER_PACKAGES=have."
    missing=$(packages_missing)
    [[ -z $missing ]] && return
    [[ $(id -u) == 0 ]] || command -v sudo >/dev/null || stop "packages are missing and there is no sudo. As root: apt-get install ${missing//$'\n'/ }"
    step "updating the list of packages" "10 s" apt update || stop "the list of packages can't be updated. Look at: apt-get update"
    # shellcheck disable=SC2086 — one word per package
    step "installing ${missing//$'\n'/ }" "1 minute" without_database_server without_monitoring_server apt install --no-install-recommends -y $missing \
        || stop "packages can't be installed. Look at: apt-get install ${missing//$'\n'/ }"
}

find_cargo() {
    command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    command -v cargo >/dev/null || stop "cargo is missing. Install Rust 1.95 or newer from https://rustup.rs, then run again."
}

# Where cargo builds, whether or not CARGO_TARGET_DIR is set.
target_folder() { realpath -m "${CARGO_TARGET_DIR:-target}"; }

# The same words for both commands: the second finds the first one's build.
build_usually() {
    if [[ -d $(target_folder)/$1/deps ]]; then echo "seconds, or some minutes after changes"; else echo "$2 minutes on 2 cores, the first time"; fi
}

# What muster-shot is built with: Debian's -dev packages, or the same by other names.
pictures_can_be_built() { pkg-config --exists xcb libpipewire-0.3 wayland-client egl gbm 2>/dev/null; }

# At a terminal cargo shows how far it is; elsewhere only what is wrong.
cargo_words=(--quiet --locked)
[[ -t 2 ]] && cargo_words=(--locked)

[[ ${MUSTER_PACKAGES:-} == have ]] || install_packages
find_cargo
