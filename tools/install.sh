#!/bin/sh
# Makes the environment: tools/install.sh VENV LOCK (what `make env` calls).
# Asks nothing. Installs Debian packages only as root or with a sudo that wants
# no password, and only when they are missing. PYTHON chooses the interpreter.
set -eu

venv=$1
lock=$2
opengl_packages='libegl1 libopengl0 libgl1-mesa-dri'
supported='import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))'

fail() {
    echo "error: $*" >&2
    exit 2
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}

apt_install() {
    command -v apt-get >/dev/null && as_root true || return 1
    echo "apt-get install $*"
    as_root apt-get -qq update || true # an old list may still do
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "$@"
}

# The first Python of a version that the lock was resolved for. Each is run,
# not looked up: the shims of pyenv exist for versions that are not there.
find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c "$supported" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python: expected 3.11 or 3.12, found none as" \
        "${PYTHON:-python3.11, python3.12 or python3}; name one with:" \
        "make env PYTHON=/path/to/python3.11"
}

# Debian ships venv without ensurepip until pythonX.Y-venv is installed.
need_ensurepip() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    package=$("$1" -c \
        'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    apt_install "$package" || true
    "$1" -c 'import ensurepip, venv' 2>/dev/null || fail \
        "$1: expected the modules venv and ensurepip, found none;" \
        "install them as root: apt-get install $package"
}

# `.incomplete` is there from the first moment to the last, so that what an
# interruption left is thrown away: pip takes half a package for a whole one.
make_venv() {
    if [ -e "$venv/.incomplete" ]; then
        echo "The last installation did not finish: starting anew."
        rm -rf "$venv"
    fi
    if [ ! -e "$venv" ]; then
        python=$(find_python)
        need_ensurepip "$python"
        mkdir -p "$venv"
        touch "$venv/.incomplete"
        "$python" -m venv "$venv"
    fi
    "$venv/bin/python" -c "$supported" 2>/dev/null || fail \
        "$venv: expected an environment of Python 3.11 or 3.12, found" \
        "another or a broken one; remove it: rm -r $venv"
}

pip() {
    "$venv/bin/python" -m pip "$@" --disable-pip-version-check --no-input
}

# The lock holds every package, so pip has nothing to resolve; pip check says
# whether that is true. gym and rliable come as sources: they are built with the
# locked setuptools and wheel, not with the newest.
install_packages() {
    touch "$venv/.incomplete"
    echo "Installing $lock into $venv: a few minutes, 4 GB (GPU: 7 GB)."
    # shellcheck disable=SC2046 # two words
    pip install --no-deps $(grep -E '^(setuptools|wheel)==' requirements.lock)
    pip install --no-deps --no-build-isolation --use-pep517 -r "$lock"
    pip check
    rm "$venv/.incomplete"
}

# What is wrong with rendering, in one line; nothing if it works. A MUJOCO_GL of
# the user's is left out: the question is what this machine has.
rendering_problem() {
    env -u MUJOCO_GL "$venv/bin/python" -c \
        'from dreamerv2_base.envs import opengl; opengl.choose_renderer()' \
        2>&1 >/dev/null | tail -n 1 |
        sed 's/^[^ ]*UserError: //; s/; mend it: .*//'
}

# OpenGL is the only thing wanted that pip cannot install. Without it the rest
# works, so the installation goes on.
need_opengl() {
    [ -n "$(rendering_problem)" ] || return 0
    # shellcheck disable=SC2086 # a list
    apt_install $opengl_packages || true
    problem=$(rendering_problem)
    [ -z "$problem" ] || echo "warning: nothing can be rendered here" \
        "($problem); as root: apt-get install -y --no-install-recommends" \
        "$opengl_packages" >&2
}

make_venv
install_packages
need_opengl
