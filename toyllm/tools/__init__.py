"""Small commands: `uv run -m toyllm.tools.NAME`."""
