"""Measures, one file each: `measure(run)` takes a finished run and returns plain numbers."""
