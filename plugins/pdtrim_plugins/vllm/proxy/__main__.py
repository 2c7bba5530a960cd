"""`python -m pdtrim_plugins.vllm.proxy`."""

from pdtrim_plugins.vllm.proxy.command import main

if __name__ == "__main__":
    main()
