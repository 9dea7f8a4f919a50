"""A PulseAudio of our own: a null sink that plays into nothing, and is recorded."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import wave
from array import array
from pathlib import Path
from typing import Self

from tests.support.ports import free_port, wait_listening
from tests.support.sshd import wait_until

PULSEAUDIO = shutil.which("pulseaudio") or "/usr/bin/pulseaudio"
SINK = "null"
RATE_HZ = 44100
CHANNELS = 2
FRAME_BYTES = 2 * CHANNELS


class Pulse:
    """Run PulseAudio at 127.0.0.1:`port` and at `socket`, for whoever has `cookie`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.cookie = folder / "cookie"
        self.cookie.write_bytes(os.urandom(256))
        self.socket = folder / "native"
        self.log = folder / "pulseaudio.log"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PULSE_")},
            "HOME": str(folder),
            "PULSE_RUNTIME_PATH": str(folder / "runtime"),
            "PULSE_STATE_PATH": str(folder / "state"),
            "PULSE_COOKIE": str(self.cookie),
            "PULSE_SERVER": f"tcp:127.0.0.1:{self.port}",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        sound = f"rate={RATE_HZ} channels={CHANNELS} format=s16le"
        cookie = f"auth-cookie={self.cookie}"
        modules = [
            f"module-null-sink sink_name={SINK} {sound}",
            f"module-native-protocol-tcp listen=127.0.0.1 port={self.port} {cookie}",
            f"module-native-protocol-unix socket={self.socket} {cookie}",
        ]
        options = [option for module in modules for option in ("-L", module)]
        log = self.log.open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    PULSEAUDIO,
                    "-n",
                    "--daemonize=no",
                    "--use-pid-file=no",
                    "--exit-idle-time=-1",
                    "--realtime=no",
                    "--high-priority=no",
                    "--log-target=stderr",
                    *options,
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_listening(self.port, 30.0)
        wait_until(self.socket.exists, 30.0)
        return self

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class Recording:
    """What the monitor of the sink gives, as raw frames, while the block runs."""

    def __init__(self, file: Path, environment: dict[str, str]) -> None:
        self._file = file
        self._file.write_bytes(b"")
        self._process = subprocess.Popen(
            [
                "parec",
                f"--device={SINK}.monitor",
                "--raw",
                "--latency-msec=200",
                "--format=s16le",
                f"--rate={RATE_HZ}",
                f"--channels={CHANNELS}",
                str(self._file),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
        )

    def frames(self) -> bytes:
        """Return what was recorded so far."""
        return self._file.read_bytes()

    def has(self, frames: bytes) -> bool:
        """Return whether exactly these frames were played, one after the other."""
        return frames in self.frames()

    def __enter__(self) -> Self:
        # The first silence that arrives says that it records.
        wait_until(lambda: bool(self.frames()), 30.0)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(30)


def record(pulse: Pulse, environment: dict[str, str] | None = None) -> Recording:
    """Record what the sink plays, from now on; `environment` is that of the recorder.

    What is to be found in it needs silence around it: when a stream begins or ends,
    the monitor may lose the part that the sink had made ahead.
    """
    return Recording(
        pulse.folder / "recording.raw",
        {"PATH": os.environ["PATH"], **(environment or pulse.environment)},
    )


def silence(length_s: float) -> bytes:
    """Return silence as frames."""
    return bytes(int(length_s * RATE_HZ) * FRAME_BYTES)


def tone(frequency_hz: float, length_s: float) -> bytes:
    """Return a tone as frames: the same on all channels, half as loud as can be."""
    samples = array("h")
    for i in range(int(length_s * RATE_HZ)):
        value = int(16384 * math.sin(2 * math.pi * frequency_hz * i / RATE_HZ))
        samples.extend([value] * CHANNELS)
    return samples.tobytes()


def write_wav(path: Path, frames: bytes) -> None:
    """Write frames as a file that paplay plays."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(CHANNELS)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(frames)


def without_silence(frames: bytes) -> array[int]:
    """Return the samples of the first channel between the silence at either end."""
    samples = array("h", frames[: len(frames) // FRAME_BYTES * FRAME_BYTES])[::CHANNELS]
    sounding = [i for i, sample in enumerate(samples) if sample]
    return samples[sounding[0] : sounding[-1] + 1] if sounding else array("h")


def frequency_hz(samples: array[int]) -> float:
    """Return the frequency of a tone, by how often it rises through zero."""
    rising = [i for i in range(1, len(samples)) if samples[i - 1] < 0 <= samples[i]]
    return (len(rising) - 1) * RATE_HZ / (rising[-1] - rising[0])


def longest_pause_s(samples: array[int]) -> float:
    """Return the longest time without a sound."""
    longest = run = 0
    for sample in samples:
        run = 0 if sample else run + 1
        longest = max(longest, run)
    return longest / RATE_HZ
