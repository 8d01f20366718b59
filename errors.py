"""The one exception whose message is all that the user needs: which file, which value, what was expected, what to do."""


class UserError(Exception):
    """Bad input. Scripts print it as one line, without a traceback, and exit with status 2."""
