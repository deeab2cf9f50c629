"""Claims, one file each: its docstring with the rules, NUMBER, UNITS, `test(bench) → Outcome`."""
