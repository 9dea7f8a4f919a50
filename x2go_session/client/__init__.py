"""python-x2go's client, on top of the session registry. See docs/x2go-client.md."""

from x2go_session.client.client import X2GoClient
from x2go_session.registry import RegisteredSession as X2GoSession

__all__ = ["X2GoClient", "X2GoSession"]
