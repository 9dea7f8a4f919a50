"""Sound: from programs of a session to the sound server of this machine.

The programs run beside the sshd of the test with what a session gives them; nothing
else of an X2Go server has a part in it.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtunnel import Tunnel
from tests.support.ports import free_port, listens
from tests.support.pulse import (
    Pulse,
    frequency_hz,
    longest_pause_s,
    record,
    silence,
    tone,
    without_silence,
    write_wav,
)
from tests.support.sshd import Sshd, wait_until
from tests.support.tunnels import Target, open_tunnel, visit
from tests.support.x2go_services import Told, make_session
from x2go_session.errors import ServiceError
from x2go_session.events import ForwardRefused, ServiceFailed, ServiceStarted
from x2go_session.services import Services
from x2go_session.services.sound import Sound, SoundSystem, find_server, read_cookie
from x2go_session.session import Session

TONE_HZ = 440.0


@pytest.fixture(scope="module")
def pulse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pulse]:
    with Pulse(tmp_path_factory.mktemp("pulse")) as daemon:
        yield daemon


@pytest.fixture
def tunnel(sshd: Sshd) -> Iterator[Tunnel]:
    with open_tunnel(sshd, "engine") as opened:
        yield opened


@pytest.fixture
def session(tunnel: Tunnel, tmp_path: Path) -> Session:
    return make_session(tmp_path, tunnel)


def environment(sound: Sound, folder: Path) -> dict[str, str]:
    """Return what a program of the session has: nothing here, but what we give it."""
    given = sound.environment
    return {"PATH": os.environ["PATH"], "HOME": str(folder), **given}


def play(sound: Sound, frames: bytes, folder: Path) -> None:
    """Play as a program of the session does: it knows its environment only."""
    file = folder / "sound.wav"
    write_wav(file, frames)
    subprocess.run(["paplay", str(file)], env=environment(sound, folder), check=True)


def reaches_pulse(sound: Sound, folder: Path) -> bool:
    """Return whether a program of the session gets an answer of PulseAudio."""
    asked = subprocess.run(
        ["pactl", "info"], env=environment(sound, folder), capture_output=True
    )
    return asked.returncode == 0


def test_a_tone_arrives_with_its_frequency_and_without_a_gap(
    pulse: Pulse, session: Session, tmp_path: Path
) -> None:
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    sound.start(session)
    frames = tone(TONE_HZ, 2.0)
    with record(pulse) as recording:
        play(sound, silence(0.5) + frames + silence(0.5), tmp_path)
        wait_until(lambda: recording.has(frames), 30.0)
    heard = without_silence(recording.frames())
    assert frequency_hz(heard) == pytest.approx(TONE_HZ, abs=0.1)
    assert longest_pause_s(heard) < 0.001
    sound.stop()


def test_a_pulseaudio_without_a_port_plays_and_records_by_its_socket(
    pulse: Pulse, session: Session, tmp_path: Path
) -> None:
    sound = Sound(server=f"unix:{pulse.socket}", cookie=pulse.cookie)
    sound.start(session)
    frames = tone(TONE_HZ, 0.5)
    # The recorder is a program of the session, too: so sound comes from here as well.
    with record(pulse, environment(sound, tmp_path)) as recording:
        play(sound, silence(0.5) + frames + silence(0.5), tmp_path)
        wait_until(lambda: recording.has(frames), 30.0)
    sound.stop()


def test_programs_reach_pulseaudio_on_every_backend(
    backend: str, sshd: Sshd, pulse: Pulse, tmp_path: Path
) -> None:
    with open_tunnel(sshd, backend) as tunnel:
        session = make_session(tmp_path, tunnel)
        sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
        sound.start(session)
        assert reaches_pulse(sound, tmp_path)
        sound.stop()


def test_cookie_and_configuration_are_on_the_server_while_it_runs(
    pulse: Pulse, session: Session
) -> None:
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    assert sound.environment == {}
    sound.start(session)
    remote = Path(session.remote_folder)
    cookie, conf = remote / ".pulse-cookie", remote / ".pulse-client.conf"
    assert sound.environment == {"PULSE_CLIENTCONFIG": str(conf)}
    assert sound.port == session.ports.sound
    assert cookie.read_bytes() == pulse.cookie.read_bytes()
    assert cookie.stat().st_mode & 0o777 == 0o600
    assert conf.read_text().splitlines() == [
        f"default-server=127.0.0.1:{session.ports.sound}",
        f"cookie-file={cookie}",
    ]
    sound.stop()
    assert list(remote.iterdir()) == []
    assert not listens(session.ports.sound)
    assert (sound.port, sound.environment) == (0, {})


def test_sound_goes_before_what_else_the_connection_carries(
    pulse: Pulse, session: Session
) -> None:
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    sound.start(session)
    assert sound.listener is not None
    assert sound.listener.priority == "interactive"
    sound.stop()


def test_after_a_resume_it_is_on_the_port_that_the_session_has_then(
    pulse: Pulse, session: Session, tmp_path: Path
) -> None:
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    sound.start(session)
    before = session.ports.sound
    sound.stop()
    session.use_ports(free_port(), free_port(), free_port())
    sound.start(session)
    assert sound.port == session.ports.sound != before
    assert reaches_pulse(sound, tmp_path)
    sound.stop()


def test_a_port_that_is_taken_is_stood_in_for_by_another_one(
    pulse: Pulse, session: Session, tmp_path: Path
) -> None:
    taken = session.ports.sound
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    with socket.create_server(("127.0.0.1", taken)):
        sound.start(session)
    assert sound.port == session.ports.sound != taken
    assert reaches_pulse(sound, tmp_path)
    sound.stop()


def test_without_a_cookie_the_failure_is_told_and_the_session_goes_on(
    pulse: Pulse, session: Session, tmp_path: Path
) -> None:
    told = Told(session.events)
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=tmp_path / "nothing")
    services = Services([sound], session.events)
    services.start(session)
    (failed,) = told.of(ServiceFailed)
    assert isinstance(failed, ServiceFailed)
    assert failed.service == "sound"
    assert "no cookie of PulseAudio" in failed.reason
    assert services.running == []
    assert services.environment == {}
    assert not listens(session.ports.sound)
    assert list(Path(session.remote_folder).iterdir()) == []


def test_a_dead_pulseaudio_is_told_and_there_is_sound_when_it_runs(
    session: Session, tmp_path: Path
) -> None:
    pulse = Pulse(tmp_path / "pulse")
    told = Told(session.events)
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    services = Services([sound], session.events)
    services.start(session)
    (failed,) = told.of(ServiceFailed)
    assert isinstance(failed, ServiceFailed)
    assert f"cannot connect to 127.0.0.1:{pulse.port}" in failed.reason
    assert len(told.of(ServiceStarted)) == 1
    assert not reaches_pulse(sound, tmp_path)
    with pulse:
        assert reaches_pulse(sound, tmp_path)
    services.stop()


def test_pulseaudio_takes_nobody_who_has_another_cookie(
    pulse: Pulse, session: Session, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(256))
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=other)
    sound.start(session)
    assert not reaches_pulse(sound, tmp_path)
    sound.stop()


def test_a_server_that_forwards_nothing_is_told_with_the_port(
    pulse: Pulse, tmp_path: Path
) -> None:
    with (
        Sshd(tmp_path / "sshd", "AllowTcpForwarding no") as server,
        open_tunnel(server, "engine") as tunnel,
    ):
        session = make_session(tmp_path, tunnel)
        told = Told(session.events)
        sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
        services = Services([sound], session.events)
        services.start(session)
        (refused,) = told.of(ForwardRefused)
        assert isinstance(refused, ForwardRefused)
        assert (refused.service, refused.port) == ("sound", session.ports.sound)
        assert len(told.of(ServiceFailed)) == 1
        assert services.environment == {}
        assert list(Path(session.remote_folder).iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(
    pulse: Pulse, session: Session
) -> None:
    Path(session.remote_folder).rmdir()
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    with pytest.raises(Exception, match="pulse-cookie"):
        sound.start(session)
    assert sound.environment == {}
    assert not listens(session.ports.sound)


def test_stopping_on_a_lost_connection_raises_nothing(
    pulse: Pulse, session: Session
) -> None:
    sound = Sound(server=f"127.0.0.1:{pulse.port}", cookie=pulse.cookie)
    sound.start(session)
    session.tunnel.close()
    sound.stop()
    assert sound.port == 0


def test_esd_gets_its_cookie_in_the_home_folder_and_its_own_protocol(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    cookie = tmp_path / "esd_auth"
    cookie.write_bytes(b"0123456789abcdef")
    heard: list[bytes] = []
    with (
        Sshd(tmp_path / "sshd", f"SetEnv HOME={home}") as server,
        open_tunnel(server, "engine") as tunnel,
        Target(lambda conn: heard.append(conn.recv(16))) as esd,
    ):
        session = make_session(tmp_path, tunnel)
        sound = Sound(SoundSystem.ESD, f"127.0.0.1:{esd.port}", cookie)
        sound.start(session)
        assert sound.environment == {}
        assert list(Path(session.remote_folder).iterdir()) == []
        with visit(session.ports.sound) as program:
            program.sendall((home / ".esd_auth").read_bytes())
            wait_until(lambda: cookie.read_bytes() in heard, 30.0)
        sound.stop()
        assert list(home.iterdir()) == []


def test_no_sound_is_no_port_and_no_file(session: Session) -> None:
    sound = Sound(SoundSystem.NONE)
    sound.start(session)
    assert (sound.port, sound.environment) == (0, {})
    assert not listens(session.ports.sound)
    assert list(Path(session.remote_folder).iterdir()) == []
    sound.stop()


def test_the_cookie_is_found_where_pulseaudio_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("PULSE_COOKIE", raising=False)
    with pytest.raises(ServiceError, match=r"\.pulse-cookie or .*\.config/pulse/cook"):
        read_cookie(SoundSystem.PULSE)
    new = tmp_path / ".config" / "pulse" / "cookie"
    new.parent.mkdir(parents=True)
    new.write_bytes(b"new")
    assert read_cookie(SoundSystem.PULSE) == b"new"
    (tmp_path / ".pulse-cookie").write_bytes(b"old")
    assert read_cookie(SoundSystem.PULSE) == b"old"


def test_the_sound_server_is_found_at_its_socket_where_no_port_answers(
    pulse: Pulse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2go_session.services.sound.PULSE_PORT", free_port())
    monkeypatch.delenv("PULSE_SERVER", raising=False)
    monkeypatch.setenv("PULSE_RUNTIME_PATH", str(pulse.socket.parent))
    assert find_server(SoundSystem.PULSE) == (f"unix:{pulse.socket}", None)
    monkeypatch.setattr("x2go_session.services.sound.PULSE_PORT", pulse.port)
    assert find_server(SoundSystem.PULSE) == (f"127.0.0.1:{pulse.port}", None)


@pytest.mark.parametrize("form", ["tcp:{}", "{}", "{{4711}}tcp4:{}", "unix:/none {}"])
def test_the_sound_server_that_the_user_named_comes_first(
    form: str, pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{pulse.port}"
    monkeypatch.setenv("PULSE_SERVER", form.format(address))
    assert find_server(SoundSystem.PULSE) == (address, None)
    monkeypatch.setenv("PULSE_SERVER", f"unix:{pulse.socket}")
    assert find_server(SoundSystem.PULSE) == (f"unix:{pulse.socket}", None)
    monkeypatch.setenv("PULSE_SERVER", str(pulse.socket))
    assert find_server(SoundSystem.PULSE) == (f"unix:{pulse.socket}", None)


def test_a_sound_server_that_is_named_without_a_port_has_the_usual_one(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("x2go_session.services.sound.PULSE_PORT", pulse.port)
    monkeypatch.setenv("PULSE_SERVER", "localhost")
    assert find_server(SoundSystem.PULSE) == (f"localhost:{pulse.port}", None)
