"""The one exception for a user's own mistake."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message says what must hold, what came, and what to try; for a file, its path and the place in
    it. The command line prints it without a traceback (`--debug` shows one) and exits with status 2.
    """
