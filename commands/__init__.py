"""The commands: a module for each command or group, imported when it is used.

`cli.py` has only their names, and no other part knows them. `asking.py` and `lists.py` are what
those that ask a running service share; `transfer.py` is what imports and exports do.
"""
