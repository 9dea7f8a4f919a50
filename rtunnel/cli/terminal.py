"""Questions to the user, on the terminal itself: stdin and stdout stay the caller's.

As ssh(1) does, everything is asked on /dev/tty, and only where there is one. Whether
a question may be asked at all (BatchMode) is decided by who connects.
"""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rtunnel.ssh.options import HostKeyQuestion, InteractiveQuestion

TERMINAL = "/dev/tty"


def is_there() -> bool:
    """Return whether someone can be asked: this process has a controlling terminal."""
    try:
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def ask_secret(question: str) -> str | None:
    """Ask for a password or passphrase, not shown; None: the user has none (Ctrl-D)."""
    try:
        return getpass.getpass(f"{harmless(question).rstrip(': ')}: ")
    except EOFError:
        return None


def ask(question: str) -> str:
    """Ask for a line of text, shown while it is typed; empty at Ctrl-D."""
    with open(TERMINAL, "r+b", buffering=0) as terminal:
        terminal.write(harmless(question).encode())
        line = bytearray()
        while (byte := terminal.read(1)) not in (b"", b"\n"):
            line += byte
        return line.decode(errors="replace").strip()


def confirm_host_key(question: HostKeyQuestion) -> bool:
    """Show the fingerprint of a host key that is not known; only "yes" accepts it."""
    answer = ask(
        f"The host key of {question.host} is not known.\n"
        f"{question.key_type} key fingerprint: {question.fingerprint}\n"
        f"Is it right, and shall it be added to {question.known_hosts} (yes/no)? "
    )
    return answer.lower() == "yes"


def answer_prompts(question: InteractiveQuestion) -> list[str]:
    """Put the questions of the server (RFC 4256) to the user, one after the other."""
    head = "\n".join(text for text in (question.title, question.instructions) if text)
    answers = []
    for prompt, shown in question.prompts:
        text = f"{head}\n{prompt}" if head else prompt
        head = ""
        answers.append(ask(text) if shown else ask_secret(text) or "")
    return answers


def harmless(text: str) -> str:
    """Return the text without control characters: a peer may have written it."""
    return "".join(char for char in text if char.isprintable() or char == "\n")
