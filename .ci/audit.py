"""Run pip-audit, also behind a mirror that does not know each version.

Takes pip-audit's arguments, and ends with its status. It asks the index of packages for
the advisories of each version that is pinned. A mirror may have those of the newest
version of a project only: they are taken where that is the one that is pinned, and are
asked for first. Of other pins it knows nothing; pip-audit names them as skipped. If it
knows nothing of any, or takes too long, this ends with 1.
"""

import signal
import sys

import pip_audit._cli
import pip_audit._service.pypi as index
import requests
from packaging.version import Version
from urllib3.util import Retry

# A hundred versions take 10 s.
LIMIT_S = 600
RETRIES = Retry(5, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))


class Advisories:
    """A session that asks for a project first, then for a version of it."""

    known = 0

    def __init__(self, session: requests.Session) -> None:
        self._session = session
        for adapter in session.adapters.values():
            adapter.max_retries = RETRIES

    def get(self, url: str, timeout: float | None) -> requests.Response:
        """Return the answer about `url`, which ends with NAME/VERSION/json."""
        answer = self._get(url, timeout)
        Advisories.known += answer.ok
        return answer

    def _get(self, url: str, timeout: float | None) -> requests.Response:
        project, version = url.removesuffix("/json").rsplit("/", 1)
        newest = self._session.get(f"{project}/json", timeout=timeout)
        if newest.ok and Version(newest.json()["info"]["version"]) == Version(version):
            return newest
        return self._session.get(url, timeout=timeout)


def main() -> None:
    """Run the command with sessions of ours."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LIMIT_S)
    theirs = index.caching_session
    index.caching_session = lambda *given: Advisories(theirs(*given))
    pip_audit._cli.audit()
    if not Advisories.known:
        sys.exit("the index knows nothing of these versions: `make lock` renews them")


def _give_up(*_: object) -> None:
    sys.exit(f"the index told of {Advisories.known} versions in {LIMIT_S} s: try again")


if __name__ == "__main__":
    main()
