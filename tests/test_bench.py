"""`rtunnel bench`: every scenario runs, in small, and its figures reach every output.

No figure has a limit here: what is measured is told, and judged by people.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rtunnel.bench.ports import free_port
from rtunnel.bench.process import BenchError, python
from rtunnel.bench.results import Figure, Report, Result, Sample, distribution
from rtunnel.bench.scenario import link
from rtunnel.bench.table import cell, number
from rtunnel.cli import INTERRUPTED, main
from rtunnel.cli.bench_command import SCENARIOS
from rtunnel.cli.exit_status import ExitStatus
from tests.support.processes import children
from tests.support.sshd import wait_until
from tests.support.tunnels import Target, background, echo, noise, read_exactly

# Two dozen tunnels, one after the other, on a machine that may have other work.
SLOW_S = 300

pytestmark = pytest.mark.timeout(SLOW_S)

# Who is measured besides rtunnel, with `--against ssh`.
OTHERS = {
    "bulk": {"ssh", "floor"},
    "latency": {"ssh", "own gateway", "direct"},
    "wan": {"ssh", "own gateway", "link alone"},
    "mixed": {"ssh"},
    "rate": {"ssh", "own gateway", "direct"},
    "idle": {"ssh", "own gateway"},
    "relay": {"socat", "C splice loop"},
    "sftp": {"paramiko"},
}
# A reference has no client, or moves nothing.
WITHOUT = {
    ("floor", "inbound"),
    ("floor", "outbound"),
    ("direct", "client's CPU for one"),
}


class Run:
    """One run of all scenarios, and what it left behind."""

    def __init__(self, folder: Path) -> None:
        self.json, self.page = folder / "figures.json", folder / "figures.html"
        command = [
            *(sys.executable, "-m", "rtunnel", "bench", "all", "--quick"),
            *("--against", "ssh", "--json", self.json, "--report", self.page),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.said, self.told = done.stdout, done.stderr
        self.report = Report.load(self.json)
        self.results = {result.scenario: result for result in self.report.results}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("bench"))


# -- a run -----------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_measures_each_figure_of_everybody(run: Run, scenario: str) -> None:
    result = run.results[scenario]
    assert set(result.peers) == {"rtunnel", *OTHERS[scenario]}
    missing = [
        (peer, figure.name)
        for peer in result.peers
        for figure in result.figures
        if not (result.median(peer, figure) or 0) > 0
        and (peer, figure.name) not in WITHOUT
    ]
    assert missing == []
    assert result.notes == []


def test_progress_goes_to_stderr_and_the_table_to_stdout(run: Run) -> None:
    assert "wan: round 1 of 1, own gateway\n" in run.told
    for result in run.report.results:
        assert result.title in run.said
    assert run.said.startswith("date ")


def test_the_environment_is_told_with_the_figures(run: Run) -> None:
    told = run.report.environment
    assert {"date", "rtunnel", "libcrypto", "ssh", "kernel", "processor"} <= set(told)
    assert told["command"] == "rtunnel bench all --against ssh --rounds 1 --quick"
    assert "OpenSSH" in told["ssh"]


def test_every_number_that_was_used_is_told(run: Run) -> None:
    parameters = run.results["mixed"].parameters
    assert parameters["rounds"] == 1
    assert parameters["KiB of its queue"] == 64


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere, and the sections it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.sections: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.loaded += [str(v) for k, v in attrs if k in ("src", "href")]
        if tag == "section":
            self.sections.append(names["id"])


def test_the_page_has_every_scenario_and_loads_nothing(run: Run) -> None:
    page = Outside()
    page.feed(run.page.read_text())
    assert page.loaded == []
    assert page.sections == list(SCENARIOS)
    assert "url(" not in run.page.read_text()


def test_the_drawings_are_well_formed_and_stay_inside_of_their_frame(run: Run) -> None:
    parts = run.page.read_text().split("<svg ")[1:]
    assert len(parts) > len(SCENARIOS)
    for part in parts:
        drawing = ET.fromstring(f"<svg {part.partition('</svg>')[0]}</svg>")
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        for dot in drawing.iter("circle"):
            assert 0 <= float(dot.attrib["cx"]) <= width
            assert 0 <= float(dot.attrib["cy"]) <= height
        for bar in drawing.iter("rect"):
            assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width


def test_an_earlier_run_can_be_shown_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "again.html"
    again = ["bench", "--from", str(run.json), "--report", str(page)]
    assert main(again) == ExitStatus.ENDED
    assert capsys.readouterr().out == run.said
    assert page.read_text() == run.page.read_text()
    assert main(["bench", "--from", str(run.json), "--markdown"]) == ExitStatus.ENDED
    told = capsys.readouterr().out
    assert "### Bulk over loopback, one channel\n" in told
    assert "|  | rtunnel | ssh | floor |\n| --- | ---: | ---: | ---: |\n" in told


# -- mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bulk", "--against", "telnet"], "'telnet' is none of ssh, asyncssh"),
        (["everything"], "'everything' is not one of"),
        (["bulk", "--json", "no/such/folder/file"], "there is no such folder"),
        (["bulk", "--rounds", "0"], "not in the range"),
    ],
)
def test_a_wrong_command_line_is_told_before_anything_is_measured(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == ExitStatus.USAGE
    assert words in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps({"format": 0}))
    assert main(["bench", "--from", str(path)]) == ExitStatus.UNEXPECTED
    assert "is not what `rtunnel bench --json` writes" in capsys.readouterr().err


def test_a_part_that_fails_is_named_with_what_it_said() -> None:
    with (
        python("the visitor", "load", "visit", 1, "echo", 1) as child,
        pytest.raises(BenchError, match=r"(?s)the visitor: ended with .*refused"),
    ):
        child.read()


def descendants(pid: int) -> set[int]:
    """Return the processes that a process has started, and those that they have."""
    found, queue = set(), [pid]
    while queue:
        new = children(queue.pop())
        found |= set(new)
        queue += new
    return found


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "rtunnel", "bench", "mixed", "--against", "ssh"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        process.stderr.readline()
        # sshd and three targets; the link and the tunnel follow.
        wait_until(lambda: len(descendants(process.pid)) > 5)
        started = descendants(process.pid)
        process.send_signal(number)
        assert process.wait(SLOW_S) == INTERRUPTED
    wait_until(lambda: not any(map(is_running, started)))


# -- parts -----------------------------------------------------------------------------


def test_a_free_port_is_none_that_the_kernel_gives_to_connections() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == 100
    assert max(ports) < first


def test_a_port_that_somebody_has_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        monkeypatch.setattr("rtunnel.bench.ports.FIRST_PORT", port)
        monkeypatch.setattr("rtunnel.bench.ports.LAST_PORT", port)
        monkeypatch.setattr("rtunnel.bench.ports._given", set())
        with pytest.raises(OSError, match="no free port"):
            free_port()


def test_the_link_carries_every_byte_in_order_each_way() -> None:
    data = noise(300_000)
    with (
        Target(echo) as target,
        link(target.port, 10_000_000, 0.02, 65_536) as port,
        socket.create_connection(("127.0.0.1", port)) as sock,
        background(sock.sendall, data),
    ):
        assert read_exactly(sock, len(data)) == data


def result_of(**rounds: list[float]) -> Result:
    result = Result("bulk", "Bulk", {}, [Figure("inbound", "MB/s")])
    result.add(
        {
            peer: [Sample({"inbound": value}) for value in values]
            for peer, values in rounds.items()
        }
    )
    return result


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    result = result_of(rtunnel=[100.0, 300.0, 40.0], ssh=[50.0, 100.0, 80.0])
    figure = result.figures[0]
    assert result.median("rtunnel", figure) == 100
    assert result.ratio("ssh", figure) == 2  # of 2, 3 and 0.5
    assert cell(result, "ssh", figure) == "80.0 (2.00x)"
    assert cell(result, "rtunnel", figure) == "100"


def test_a_figure_that_a_peer_does_not_have_is_a_dash() -> None:
    result = result_of(rtunnel=[100.0], ssh=[50.0])
    assert cell(result, "floor", result.figures[0]) == "-"
    assert cell(result, "ssh", Figure("outbound", "MB/s")) == "-"


def test_a_distribution_says_how_many_are_below() -> None:
    points = distribution(float(value) for value in range(1000))
    assert (500.0, 50.0) in points
    assert points[-1] == (999.0, 100.0)
    assert distribution([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012")],
)
def test_a_number_has_as_many_digits_as_mean_something(value: float, text: str) -> None:
    assert number(value) == text
