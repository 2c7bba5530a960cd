"""The built-in parts of pdtrim-core, registered through the same entry points as anyone's."""
