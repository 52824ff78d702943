#!/bin/sh
# Finds a supported Python and starts `python -m tools.install` with it: sh tools/install/run.sh serve|dev|cuda
# PYTHON selects another one. This is a shell program, because there may be no Python, or an old one.
versions="3.11 3.12 3.13 3.14"

# Print why a Python cannot be used; nothing if it can.
fault() {
    command -v "$1" > /dev/null 2>&1 || { echo "not installed"; return; }
    found=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null) || { echo "does not run"; return; }
    case " $versions " in
        *" $found "*) ;;
        *) echo "is Python $found"; return ;;
    esac
    "$1" -c 'import ensurepip, venv' 2> /dev/null ||
        echo "has no module venv (Debian, Ubuntu: apt-get install python$found-venv)"
}

looked=""
for one in ${PYTHON:-$(printf 'python%s ' $versions) python3}; do
    what=$(fault "$one")
    [ -z "$what" ] && exec "$one" -m tools.install "$@"
    looked="$looked
  $one: $what"
done
{
    echo "No suitable Python. This program needs one of $versions, with the module venv. Looked for:$looked"
    echo "Install one (Debian 12: apt-get install python3.11-venv; Ubuntu 24.04: apt-get install python3.12-venv;"
    echo "others: https://www.python.org/downloads), or select one: make ... PYTHON=/path/to/python3.11"
} >&2
exit 1
