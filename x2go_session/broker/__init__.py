"""Session brokers: who tells users which profiles they have, and on which servers.

`requests`, `answers`, `plain` and `json_text` are what is said, without any I/O.
"""
