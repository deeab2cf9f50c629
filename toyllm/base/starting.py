"""The first import of each script: it says at once that the script has started.

The imports that follow take two to three seconds, most of it JAX and Flax. Only a terminal is told,
so that what is written to a file or another program stays as it is.
"""

import contextlib
import sys

if sys.stderr is not None and sys.stderr.isatty():
    with contextlib.suppress(OSError, UnicodeError):  # a terminal that cannot show it misses little
        print("Loading JAX …", file=sys.stderr, flush=True)
