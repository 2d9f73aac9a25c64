# Makes the virtual environment that the scripts beside this file run in. A script sets `root` to the repository's
# folder, sources this file and calls `prepare EXTRA [OTHER...]`, which leaves the path of the environment's Python in
# `python`. `prepare` installs EXTRA, unless it or one of the OTHER extras is installed already: name there the extras
# that hold at least as much. A call of `use_python` before it chooses another Python, and with it another environment.
# POSIX sh.

venv=$root/.venv

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Prints "3.13", or "3.13t" for a Python without the interpreter's lock; prints nothing if the program does not run.
version_of() {
    "$1" -c 'import sys; print("%d.%d%s" % (sys.version_info[:2] + (sys.abiflags,)))' 2>/dev/null
}

# Prints the path of a version's interpreter, from PATH or from pyenv's own folder. That folder is needed because
# pyenv's commands in PATH refuse a version that is installed but not selected.
interpreter_of() {
    for each in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1"*"/bin/python$1"; do
        if [ "$(version_of "$each")" = "$1" ]; then
            command -v "$each"
            return
        fi
    done
    return 1
}

# The versions that pyproject.toml says are supported.
supported_versions() {
    sed -n 's/.*"Programming Language :: Python :: \(3\.[0-9]*\)".*/\1/p' "$root/pyproject.toml"
}

# Has `prepare` use this Python, a version or a path, in a virtual environment of its own.
use_python() {
    case $1 in
    */*) PYTHON=$1 ;;
    [0-9]*) PYTHON=$(interpreter_of "$1") ||
        fail "There is no Python $1, neither in PATH nor in ${PYENV_ROOT:-${HOME:-}/.pyenv}/versions." \
            "Install it, or name another: sh $0 --python /path/to/python" ;;
    *) PYTHON=$1 ;;
    esac
    version=$(version_of "$PYTHON") ||
        fail "$1 is not a Python 3 that runs. Give a version or a path: sh $0 --python 3.13"
    venv=$root/.venv-$version
    # Another Python of that version may have made the folder.
    wanted=$("$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)')
    if [ "$wanted" != "$("$venv/bin/python" -c 'import sys; print(sys.version, sys.base_prefix)' 2>/dev/null)" ]; then
        if [ -e "$venv" ]; then : >"$venv/incomplete"; fi
    fi
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_base_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || fail "PYTHON is $PYTHON, which is not a Python 3.11 or newer."
        base_python=$PYTHON
        return
    fi
    for base_python in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if is_new_enough "$base_python"; then return; fi
    done
    found=$(python3 --version 2>/dev/null) || found="no python3"
    fail "tr_mmap needs Python 3.11 or newer, and there is none in PATH (found: $found)." \
        "Install one, or name it: PYTHON=/path/to/python3 sh $0"
}

make_venv() {
    find_base_python
    "$base_python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail "$base_python cannot make virtual environments: it has no ensurepip or venv module." \
            "Install the package that holds them (on Debian and Ubuntu: apt install python3-venv) and try again."
    rm -rf "$venv"
    # Until the first installation is whole, this file says that the rest may not be.
    mkdir -p "$venv" && : >"$venv/incomplete" || fail "Cannot write to $root."
    "$base_python" -m venv "$venv" || fail "$base_python could not make $venv; its reason is above."
}

# Prints what an installation depends on. `prepare` compares the whole text with that of the last installation: a
# checksum would need a program that may not be installed.
describe() {
    printf '%s\n' "$root" "$1"
    "$python" -c 'import sys; print(sys.version, sys.base_prefix)'
    cat "$root/pyproject.toml" "$root/setup.py" "$root/tools/constraints.txt" "$root"/tr_mmap/native/*.[ch] "$root"/tr_mmap/sandbox/*.[ch]
}

# Runs pip so that a person sees that it works. On a terminal pip shows how far it is; elsewhere there is a line for each
# package that it downloads, with its size, and for each step after that; its warnings and errors only if it fails.
run_pip() {
    set -- "$python" -m pip --disable-pip-version-check "$@" --root-user-action=ignore
    if [ -t 1 ]; then
        "$@"
        return
    fi
    {
        code=0
        "$@" --progress-bar=off 2>"$venv/pip-errors" || code=$?
        echo "$code" >"$venv/pip-status"
    } | while IFS= read -r line; do
        line=${line#"${line%%[! ]*}"}
        case $line in
        *.metadata*) ;;
        Downloading* | "Using cached"* | Building* | Installing* | "Successfully built"*) printf '  %.110s\n' "$line" ;;
        esac
    done
    code=$(cat "$venv/pip-status")
    if [ "$code" -ne 0 ]; then cat "$venv/pip-errors" >&2; fi
    return "$code"
}

prepare() {
    python=$venv/bin/python
    if [ -e "$venv/incomplete" ] || ! is_new_enough "$python" || [ ! -x "$venv/bin/pip" ]; then
        if [ -e "$venv" ]; then echo "The virtual environment in ${venv##*/} is not usable: making it again."; fi
        make_venv
    fi
    for each in "$@"; do
        stamp=$venv/installed-$each
        if [ -f "$stamp" ] && [ "$(describe "$each")" = "$(cat "$stamp")" ]; then return; fi
    done
    stamp=$venv/installed-$1
    wanted=$(describe "$1")
    echo "Installing into ${venv##*/} what is needed ($1), up to some hundred packages. It takes one to four minutes, longer over"
    echo "a slow line or on a busy machine, and only the first time."
    # In mode "compat" the folder is a line of a .pth file. Else each start of Python would import a finder, which takes as
    # long as all the rest of it.
    (cd "$root" && run_pip install --no-compile -c tools/constraints.txt --config-settings editable_mode=compat -e ".[$1]") ||
        fail "The installation failed; pip's reason is above. Nothing else is needed than to run this again."
    # pip would compile the modules one after the other, which takes most of its time. A file that does not compile does
    # no harm. Left out, almost half: packages' own tests, and what nothing here imports, or few.
    echo "  Compiling Python's modules"
    "$python" -m compileall -q -j 0 -x 'site-packages/(.*/)?(tests?|sympy|networkx|pip|mypy|mypyc|debugpy|docutils|torch/_inductor|torch/testing)/' "$venv/lib" \
        >/dev/null 2>&1 || :
    printf '%s\n' "$wanted" >"$stamp"
    rm -f "$venv/incomplete"
}
