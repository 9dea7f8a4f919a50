"""Tunnels: one SSH connection, many listeners, each with its own handler."""

from rtunnel.tunnel.handlers import AcceptQueue, Visitor
from rtunnel.tunnel.listener import Listener, ListenerState
from rtunnel.tunnel.tunnel import Tunnel

__all__ = ["AcceptQueue", "Listener", "ListenerState", "Tunnel", "Visitor"]
