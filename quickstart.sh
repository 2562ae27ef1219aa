#!/usr/bin/env bash
# bash quickstart.sh demo [options]   the demo, by default into demo-out/ (see: python -m mudi_core demo --help)
# bash quickstart.sh test [options]   the tests (options go to pytest)
# Both install what they need into .venv beside this file first; a second run is quick.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    sed -n '2,4s/^# //p' quickstart.sh >&2
    exit 2
}
case "${1:-}" in demo | test) ;; *) usage ;; esac

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    echo "Warning: Python 3.10 or newer is needed, this is $(python3 --version 2>&1). It will probably fail." >&2

# Installing again is needed when the wanted packages changed, or this environment was made by another Python.
wanted="$(cat requirements.txt requirements-dev.txt .ci/constraints.txt .ci/torchvision_cpu.py; python3 --version; pwd)"
if [ "$(cat .venv/installed.txt 2>/dev/null)" != "$wanted" ]; then
    echo "Installing into .venv (once; some minutes) ..." >&2
    rm -rf .venv
    python3 -m venv .venv || {
        echo "python3 cannot make an environment. On Debian and Ubuntu: sudo apt-get install python3-venv" >&2
        exit 1
    }
    install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt "$@"; }
    install torch numpy pillow
    # Without its dependencies: torch is there, and must not be replaced by another build.
    install --no-deps torchvision
    if ! .venv/bin/python -c 'import torchvision' 2>.venv/torchvision.log; then
        if ! grep -q 'torchvision::nms does not exist' .venv/torchvision.log; then
            cat .venv/torchvision.log >&2
            exit 1
        fi
        echo "This torchvision was built for CUDA and torch for the CPU; see .ci/torchvision_cpu.py" >&2
        packages="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
        cp .ci/torchvision_cpu.py "$packages/"
        echo 'import torchvision_cpu' >"$packages/torchvision_cpu.pth"
        .venv/bin/python -c 'import torchvision'
    fi
    install -r requirements.txt -r requirements-dev.txt
    printf '%s\n' "$wanted" >.venv/installed.txt
fi

task="$1"
shift
case "$task" in
demo) exec .venv/bin/python -m mudi_core demo --out demo-out "$@" ;;
test)
    # One process for each core, of one thread; options given win over these: -n 0 is one process.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadgroup "$@"
    ;;
esac
