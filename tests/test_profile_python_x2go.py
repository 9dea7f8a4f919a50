"""The files are those of python-x2go: each side reads what the other one wrote."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from x2go_session.profiles import (
    ClientSettings,
    PrintingFile,
    Profile,
    SessionProfiles,
    session_parameters,
)

# Debian's python3-x2go, in the interpreter that it belongs to.
PYTHON_X2GO = """
import json, sys
from x2go.backends.printing.file import X2GoClientPrinting
from x2go.backends.profiles.file import X2GoSessionProfiles
from x2go.backends.settings.file import X2GoClientSettings

folder = sys.argv[1]
profiles = X2GoSessionProfiles(config_files=[folder + "/sessions"])
profiles.get_profile_metatype("Ours")
read = {
    "config": profiles.get_profile_config("Ours"),
    "parameters": profiles.to_session_params("Ours"),
    "metatype": profiles.get_profile_metatype("Ours"),
    "print": X2GoClientPrinting(config_files=[folder + "/printing"]).get_property(
        "save_to_folder"
    ),
    "port": X2GoClientSettings(config_files=[folder + "/settings"]).get("LDAP", "port"),
}
profiles.add_profile(
    name="Theirs", host=["a.example.org", "b.example.org"], command="MATE",
    rootless=False, sshport=2222, export={"/p q": True, "/z": False},
)
profiles.write_user_config = True
assert profiles.write()
print(json.dumps(read))
"""


def test_each_side_reads_what_the_other_one_wrote(tmp_path: Path) -> None:
    # It writes below the home folder only.
    folder = tmp_path / ".x2goclient"
    known = SessionProfiles(folder, None)
    known.add(
        "Ours",
        host=["a.example.org", "b.example.org"],
        user="me",
        sshport=2222,
        command="XFCE",
        rootless=False,
        fullscreen=True,
        speed=4,
        sound=True,
        export={"/home/me/a b": True},
        usesshproxy=True,
        sshproxyhost="proxy.example.org",
        sshproxysameuser=True,
    )
    known.write()
    printing = PrintingFile(folder, None)
    printing.choose("PDFSAVE", save_to_folder="out")
    printing.write()
    settings = ClientSettings(folder, None)
    settings.set("LDAP", "port", 390)
    settings.write()

    done = subprocess.run(
        ["/usr/bin/python3", "-W", "ignore", "-c", PYTHON_X2GO, str(folder)],
        env={**os.environ, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["config"] == known.values("Ours")
    assert read["metatype"] == known["Ours"].metatype == "XFCE Desktop"
    assert (read["print"], read["port"]) == ("out", 390)
    parameters = session_parameters(known["Ours"])
    # python-x2go means a list, too.
    assert (parameters.pop("mimebox_extensions"), read["parameters"]) == (
        [],
        {**parameters, "mimebox_extensions": ""},
    )

    theirs = SessionProfiles(folder, None)["Theirs"]
    expected = Profile(
        id=theirs.id,
        name="Theirs",
        user=theirs.user,
        host=("a.example.org", "b.example.org"),
        command="MATE",
        rootless=False,
        sshport=2222,
        export={"/p q": True, "/z": False},
    )
    assert theirs == expected
