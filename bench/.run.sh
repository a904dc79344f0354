# Sourced by the scripts beside it: sets up what they need, and runs the Python module of the script's own name.
set -euo pipefail
# shellcheck source=bin/.setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../bin/.setup.sh"
need_packages git postgresql
set_up_venv bench,dev,postgresql
export LC_ALL=C.UTF-8 PYTHONPATH=$checkout
exec "$venv/bin/python" -P -m "bench.$(basename "$0")" "$@"
