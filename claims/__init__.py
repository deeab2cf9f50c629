"""Claims, one file each: NUMBER, TITLE, and `test(bench) → Outcome`, the rules in the docstring."""
