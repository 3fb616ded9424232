"""Errors that the user can mend; command lines print them without a traceback."""


class UserError(ValueError):
    """A mistake in what the user gave; the message names the thing and the remedy."""


class ConfigError(UserError):
    """A configuration that cannot be meant: an unknown key, a missing file, a wrong value."""


class DataError(UserError):
    """Data that cannot be used: a missing folder, a corrupt image, labels out of range."""


class CheckpointWriteError(UserError):
    """A checkpoint that could not be written; the one before it is untouched."""
