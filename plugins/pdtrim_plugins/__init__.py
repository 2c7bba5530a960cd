"""The built-in components of pdtrim-core, registered through the same entry points as third-party plugins."""
