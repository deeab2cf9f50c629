"""The READMEs' commands about worlds and texts of a reader's own: see tests/test_readme.py.

They need nothing of the other commands, so they run beside them.
"""

import pytest

from tests.test_readme import commands, folder, follow, is_own

pytestmark = pytest.mark.long  # CI runs this file
__all__ = ["folder"]


@pytest.mark.parametrize("command", [c for c in commands() if is_own(c)])
def test_a_command_does_what_it_says(folder, command):
    follow(folder, command)
