"""What the command lines share."""

import sys
from collections.abc import Callable, Sequence

from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.errors import UserError


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None) -> int:
    """Runs a command; mistakes of the user end it with one message and code 2, bugs with a trace.

    Args:
        main: The command.
        argv: Its arguments; those of the process by default.
    """
    try:
        main(argv)
    except (UserError, CheckpointError) as error:
        # A loader's process sends its error with the whole traceback before the message.
        message = str(error).rpartition(f"{type(error).__name__}: ")[2].strip()
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0
