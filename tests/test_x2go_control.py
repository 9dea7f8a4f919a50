"""Commands on a real X2Go server: between markers, with their status, in time."""

from __future__ import annotations

from x2go_session.control import Control


def test_a_command_gives_its_output_and_status(control: Control) -> None:
    result = control.run("printf glued; exit 3")
    assert (result.stdout, result.status) == ("glued", 3)
