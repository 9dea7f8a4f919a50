"""A session broker: which profiles a user has, and the server where each session runs.

`broker.Broker` decides; `application` (HTTP) and `shell` (SSH) say in their words what
it decided. What outlives a request is in `state`, which several brokers may share.
"""
