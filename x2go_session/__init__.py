"""X2Go sessions over the rtunnel core: sound, printing, MIME box and shared folders.

A thin layer: each service of an X2Go remote desktop is a server port with a
handler. Only public names of `rtunnel` are used here.
"""
