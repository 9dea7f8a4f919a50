"""The gateway: a real SSH server that serves reverse tunnels and nothing else.

    with Gateway(authorized_keys=[Path("~/.ssh/authorized_keys").expanduser()]) as g:
        print(f"ssh -N -R 8080:localhost:3000 -p {g.port} 127.0.0.1")

Any client may use it: ssh(1), asyncssh, rtunnel. There is no shell, no command, no
SFTP and no way into the network behind it; a client with an authorized key may have
ports of this machine's loopback interface, and socket paths in one folder.

Who does what: `server` takes clients in, `session` is one of them, `listeners` has
the ports and the visitors, `authorized_keys` says who may, `host_key` who we are,
`transport` how keys are agreed, and `loop` is the one thread that owns all of it.
"""

from rtunnel.gateway.server import Gateway

__all__ = ["Gateway"]
