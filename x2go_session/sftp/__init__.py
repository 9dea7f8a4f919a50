"""The SFTP server inside of this process: what sshfs on the X2Go server mounts.

It serves shared folders and nothing else of this machine.
"""
