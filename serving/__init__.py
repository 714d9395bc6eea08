"""Running the service: the server, the cleaner's thread, logs, the audit log and metrics.

What is here may use everything else; databases and policies use nothing of it.
"""
