#!/bin/sh
# Table 3, pruning cost and refinement of an 8B shape on one accelerator; README.md beside this says what is needed.
#     benchmarks/gpu/run.sh [--tiny] [--out FILE] [--shape NAME] [--minutes N]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
PYTHONPATH="$root:$root/plugins${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
# No part of this asks a network for anything; without this the hub client might wait for one.
export HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" "$here/measure.py" "$@"
