"""Whether this process was forked from one that had imported the package."""

import os

happened = False


def _remember() -> None:
    global happened
    happened = True


os.register_at_fork(after_in_child=_remember)
