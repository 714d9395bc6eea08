"""The commands: a module for each command or group, imported when it is used.

`cli.py` only has their names, and no other part knows them. `asking.py` and `lists.py` are shared
by the commands that call a running service. `transfer.py` does imports and exports.
"""
