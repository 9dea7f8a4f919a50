"""Many sessions of many profiles at once: what a client keeps about them.

    registry = Registry(sessions_root)
    session = registry.register(wish_of(profile, {"cmd": "xclock"}))
    session.connect(Login(password=ask))
    session.start()

A `RegisteredSession` has a uuid before there is anything on the server. Sessions of one
profile share one `ServerConnection`, which also keeps what the server listed. The
`Registry` finds them, takes in what other clients started, and notices what became of
those that are not shown here. `Refresher` does the latter by itself, again and again.
"""

from x2go_session.registry.connection import Login as Login
from x2go_session.registry.connection import ServerConnection as ServerConnection
from x2go_session.registry.refresher import Refresher as Refresher
from x2go_session.registry.registry import Registry as Registry
from x2go_session.registry.session import RegisteredSession as RegisteredSession
from x2go_session.registry.wish import Wish as Wish
from x2go_session.registry.wish import wish_of as wish_of
