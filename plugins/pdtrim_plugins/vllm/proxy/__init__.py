"""A small proxy in front of a pair: prefill first, then decode with the K/V that prefill made.

    python -m pdtrim_plugins.vllm.proxy --prefill http://HOST:PORT --decode http://HOST:PORT [--host HOST] [--port PORT]

Both servers have a second model name, MODEL@PLAN, which requests use, so that a server of another plan answers 404. Any failure
between the two is an error for the client: no request reaches decode without K/V from prefill.
"""
