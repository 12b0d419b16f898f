"""The one family of errors that hetconv raises for its users.

Every message is a single line that says what was expected, what came, and what to do. The command line
prints that line on stderr and exits with the error's `exit_status`.
"""


class HetconvError(Exception):
    """Something asked of hetconv could not be done (exit status 1)."""

    exit_status = 1


class ArgumentError(HetconvError, ValueError):
    """An argument, option or input file is not what the call takes (exit status 2)."""

    exit_status = 2


class NotProvenError(HetconvError):
    """An exported file was not shown to compute the same as the model (exit status 3)."""

    exit_status = 3
