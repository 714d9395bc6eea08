"""Operating the service from a shell: commands that ask a running one, and those that look at this.

Each is imported when it is used, and no other part knows them: `cli.py` has only their names.
"""
