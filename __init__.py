"""Orchestration lock and history management of an Eclipse Arrowhead 5 local cloud.

`orchmgmt.app` is the application, `orchmgmt.store` the Python API, `orchmgmt.client` a client, and
`orchmgmt.testing` the service inside tests.
"""
