"""The error a user can act on."""


class UserError(ValueError):
    """Wrong input: a bad flag, file or value.

    The message is one line that says what was wrong, where (file, key, value) and what to do.
    The command-line entries print it without a traceback and exit with status 2.
    """
