"""toyllm: a laboratory for the persona selection model. Importing it creates no array."""
