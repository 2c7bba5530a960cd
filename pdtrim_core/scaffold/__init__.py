"""New plugin packages."""
