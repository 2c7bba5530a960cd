"""The plugin host: finding plugins, checking them, calling their hooks."""
