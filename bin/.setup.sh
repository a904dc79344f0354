# Sourced by bin/test, bin/try and bin/tether: makes .venv and installs what is missing. Quiet unless it fails.
# Safe to repeat: a second run sees the stamps and does nothing.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$checkout/.venv
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Print a message on stderr and end.
give_up() {
    printf '%s\n' "$@" >&2
    exit 1
}

# quietly WHAT COMMAND…: run the command, show its output only if it fails.
quietly() {
    local what=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        give_up "failed: $what" "command: $*"
    fi
    rm -f "$log"
}

# as_root COMMAND…: run it as root, through sudo where that is needed.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        give_up "this needs root: $*" "run it as root, or install sudo, and start again"
    fi
}

# need_packages NAME…: install the Debian packages of these that are missing.
need_packages() {
    local name missing=()
    for name in "$@"; do
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true)" != installed ]; then
            missing+=("$name")
        fi
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || give_up "these packages are missing: ${missing[*]}" \
        "there is no apt-get here: install what they are called on this system"
    echo "installing with apt: ${missing[*]}" >&2
    [ -n "${apt_updated:-}" ] || quietly "apt-get update" as_root apt-get update -qq
    apt_updated=yes
    quietly "apt-get install ${missing[*]}" as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Print the first Python that is new enough and can make a venv; nothing if there is none.
find_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

# set_up_venv EXTRAS: install the checkout, editable, with these extras ("" or "dev,libvirt"), into .venv.
# Does nothing while what decides it (pyproject.toml, setup.py, Python, the checkout's place) is unchanged.
set_up_venv() {
    local extras=$1 python base stamp wanted
    python=$(find_python)
    if [ -z "$python" ]; then
        need_packages python3 python3-venv
        python=$(find_python)
        [ -n "$python" ] || give_up "there is no Python 3.11 or later here" \
            "install one (Debian 12 and later have it as python3) and start again"
    fi
    mkdir -p "$venv"
    (
        flock 9  # two commands of one checkout at once: the second waits for the first
        base=$(cat "$checkout/pyproject.toml" "$checkout/setup.py"; "$python" -VV; echo "$checkout $python")
        wanted=$(printf '%s' "$base" | sha256sum | cut -d' ' -f1)
        stamp="$venv/.tether-${extras:-base}"
        if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
            exit 0
        fi
        case $extras in *libvirt*) need_headers "$python" ;; esac
        echo "setting up .venv${extras:+ with $extras}" >&2
        # A venv of another Python, or of a checkout that was moved, is no base to build on.
        if [ "$(cat "$venv/.tether-python" 2>/dev/null)" != "$checkout $python $("$python" -V)" ]; then
            rm -rf "${venv:?}"/{bin,include,lib,lib64} "$venv"/.tether-*
            quietly "making .venv" "$python" -m venv "$venv"
            echo "$checkout $python $("$python" -V)" >"$venv/.tether-python"
        fi
        quietly "installing tether and what it needs" \
            "$venv/bin/python" -m pip install -q -e "$checkout${extras:+[$extras]}"
        echo "$wanted" >"$venv/.tether-base"
        echo "$wanted" >"$stamp"
    ) 9>"$venv/.lock"
}

# need_headers PYTHON: libvirt-python is compiled against libvirt's and Python's headers.
need_headers() {
    local headers='import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'
    if "$1" -c "$headers"; then
        need_packages gcc pkg-config libvirt-dev
    else
        need_packages gcc pkg-config libvirt-dev python3-dev
    fi
}
