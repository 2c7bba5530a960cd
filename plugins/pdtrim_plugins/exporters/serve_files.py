"""The files that start a pair: values for --kv-transfer-config, a script for one machine, the plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pdtrim_plugins.exporters.json_files import write_json

if TYPE_CHECKING:
    from pdtrim_core import SavedPlan

MODULES = "pdtrim_plugins.vllm"
STORAGE = "/tmp/pdtrim-kv"  # noqa: S108 - an example, which the user changes

LEASE = 600
"""Seconds that prefill keeps K/V for a decode server that has not asked for them. vLLM's 30 are too few for a very busy one: it
would fetch what other requests have written there since, and only prefill's log would show it."""


def write_serve(folder: Path, saved: SavedPlan, decode_layers: Sequence[int], *, stock: bool) -> None:
    """Write plan.json, the four connector files and serve.sh; `stock` tells that decode needs no class of ours.

    `decode_layers` are the numbers of decode's blocks that have K/V.
    """
    write_json(folder / "plan.json", {"plan_hash": saved.digest, **saved.to_data()})
    for name, value in connector_files(decode_layers).items():
        write_json(folder / name, value)
    script = folder / "serve.sh"
    told = STOCK if stock else OURS
    script.write_text(SCRIPT.replace("@NEEDS@", told.needs).replace("@PLUGINS@", told.plugins), encoding="utf-8")
    script.chmod(0o755)


def connector_files(decode_layers: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the values of --kv-transfer-config, by file: NIXL, and files in a shared folder to try things out."""
    shared = [f"model.layers.{index}.self_attn.attn" for index in decode_layers]
    # The two models differ by design, so the engine's own check that they are the same is off; plan_hash replaces it.
    nixl: dict[str, Any] = {"enforce_handshake_compat": False}
    stored = {"shared_storage_path": STORAGE}
    ours = {"kv_role": "kv_producer", "kv_load_failure_policy": "fail"}
    stock = {"kv_role": "kv_consumer", "kv_load_failure_policy": "fail"}
    return {
        "prefill.json": {
            "kv_connector": "PDTrimNixlConnector",
            "kv_connector_module_path": f"{MODULES}.connector",
            **ours,
            "kv_connector_extra_config": {**nixl, "kv_lease_duration": LEASE, "shared_layers": shared},
        },
        "decode.json": {"kv_connector": "NixlConnector", **stock, "kv_connector_extra_config": nixl},
        "prefill-example.json": {
            "kv_connector": "PDTrimExampleConnector",
            "kv_connector_module_path": f"{MODULES}.example_connector",
            **ours,
            "kv_connector_extra_config": {**stored, "shared_layers": shared},
        },
        "decode-example.json": {"kv_connector": "ExampleConnector", **stock, "kv_connector_extra_config": stored},
    }


class _Needs(NamedTuple):
    """What a decode server needs: in words, and in front of its command."""

    needs: str
    plugins: str


STOCK = _Needs("it needs no pdtrim-core, only stock vLLM and NIXL", 'VLLM_PLUGINS="" ')
OURS = _Needs("it needs vLLM, NIXL and pdtrim-core, which has the class of its model", "")

SCRIPT = r"""#!/bin/sh
# Starts the pair on one machine: prefill, decode, and the router that hands requests from one to the other.
# `pdtrim-core serve` does the same and also waits, checks and stops. Settings come from the environment:
#   PDTRIM_DEVICE=cpu      without an accelerator (one is expected otherwise)
#   PREFILL_GPU, DECODE_GPU    which accelerator each one takes (0 and 1)
#   PREFILL_PORT, DECODE_PORT, PORT    8100, 8200, and 8000 for the router
#   NAME       what clients call the model (the last part of its own name)
#   DTYPE      the number format that both servers compute in (that of the checkpoints)
#
# Two machines: run the part "prefill" on one and "decode" on the other. On each, set VLLM_NIXL_SIDE_CHANNEL_HOST to that
# machine's own address, which the other one must reach on the side channel's port, and change --host to it. Let the router's
# two addresses point there. Copy decode/ to the decode machine: @NEEDS@. Both
# plan_hash entries, in prefill/config.json and decode/config.json, must be the same.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
PREFILL_PORT=${PREFILL_PORT:-8100} DECODE_PORT=${DECODE_PORT:-8200} PORT=${PORT:-8000}

hash_of() { sed -n 's/.*"plan_hash": *"\([0-9a-f]*\)".*/\1/p' "$1"; }
if [ "$(hash_of "$here/../prefill/config.json")" != "$(hash_of "$here/../decode/config.json")" ]; then
    echo "prefill/ and decode/ are from different exports: export the run again" >&2
    exit 1
fi

# Both servers have a second name that contains the plan, which the router uses: a server of another plan answers 404.
told=$(sed -n '/"model": *{/,/}/ s/.*"name": *"\(.*\)".*/\1/p' "$here/plan.json" | head -n 1)
NAME=${NAME:-$(printf %s "$told" | sed 's|/*$||; s|.*/||; s|.*:||; s|\.gguf$||; s| |-|g')}
case $NAME in
    "" | *[@[:space:]]*) echo "'$NAME' cannot be a model's name here: set NAME to one without @ and spaces" >&2; exit 1 ;;
esac
names="$NAME $NAME@$(hash_of "$here/../decode/config.json" | cut -c1-12)"

# Without being told, vLLM computes in bfloat16 where a checkpoint is in float32: another model than was measured.
dtype_of() {
    found=${DTYPE:-$(sed -n 's/^  "\(torch_\)\{0,1\}dtype": *"\([a-z0-9]*\)".*/\2/p' "$1" | head -n 1)}
    [ -z "$found" ] || echo "--dtype $found"
}

prefill_kv=$(cat "$here/prefill.json")
decode_kv=$(cat "$here/decode.json")
# The K/V of K/V-only blocks are computed by an operation that must not be captured in CUDA graphs.
more= prefill_more='--compilation-config {"cudagraph_mode":"NONE"}'
if [ "${PDTRIM_DEVICE:-}" = cpu ]; then
    # NIXL keeps the K/V in main memory, and vLLM's attention on a CPU wants blocks of a multiple of 32 tokens.
    prefill_kv=$(printf %s "$prefill_kv" | sed '1s/{/{"kv_buffer_device": "cpu",/')
    decode_kv=$(printf %s "$decode_kv" | sed '1s/{/{"kv_buffer_device": "cpu",/')
    more="--block-size 32" prefill_more=
    export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-nobind}"
    export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
fi

started=
trap 'kill $started 2>/dev/null || true; wait' EXIT
trap 'exit 130' INT TERM

# prefill: pdtrim-core is installed here and gives vLLM the model class and the connector.
CUDA_VISIBLE_DEVICES=${PREFILL_GPU:-0} VLLM_NIXL_SIDE_CHANNEL_HOST=${PREFILL_HOST:-127.0.0.1} VLLM_NIXL_SIDE_CHANNEL_PORT=5600 \
    python -m vllm.entrypoints.openai.api_server --model "$here/../prefill" --served-model-name $names \
    --host 127.0.0.1 --port "$PREFILL_PORT" --kv-transfer-config "$prefill_kv" \
    $(dtype_of "$here/../prefill/config.json") $more $prefill_more &
started="$started $!"

# decode. No prefix caching: decode's K/V of earlier answers in a chat would replace those that prefill computes.
CUDA_VISIBLE_DEVICES=${DECODE_GPU:-1} VLLM_NIXL_SIDE_CHANNEL_HOST=${DECODE_HOST:-127.0.0.1} VLLM_NIXL_SIDE_CHANNEL_PORT=5601 \
    @PLUGINS@python -m vllm.entrypoints.openai.api_server --model "$here/../decode" --served-model-name $names \
    --host 127.0.0.1 --port "$DECODE_PORT" --no-enable-prefix-caching --kv-transfer-config "$decode_kv" \
    $(dtype_of "$here/../decode/config.json") $more &
started="$started $!"

# router: a request goes to prefill for one token, which is dropped, and then to decode with the address of its K/V.
python -m pdtrim_plugins.vllm.proxy --prefill "http://127.0.0.1:$PREFILL_PORT" --decode "http://127.0.0.1:$DECODE_PORT" \
    --host 127.0.0.1 --port "$PORT" &
started="$started $!"
echo "when all three say that they are ready:" >&2
echo "curl http://127.0.0.1:$PORT/v1/completions -H 'Content-Type: application/json'" \
    "-d '{\"model\": \"$NAME\", \"prompt\": \"Hello\", \"max_tokens\": 16}'" >&2
wait
"""
