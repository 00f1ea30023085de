"""TensorFlow in forked processes.

A fork copies what TensorFlow knows of its threads, but not the threads: once it has run an
operation, whatever asks it for another one in a forked process waits for ever. A fork before the
first operation is harmless, and so is a process that is spawned.
"""

import os
import sys

_left_behind = False


def check_fork() -> None:
    """Refuse to wait for threads that only the parent of this process has.

    Raises
    ------
    RuntimeError
        If TensorFlow had run an operation before this process was forked.
    """
    if _left_behind:
        raise RuntimeError(
            "TensorFlow ran before this process was forked and would wait here for ever, for its "
            'threads are those of the parent: start the process with "spawn" '
            '(multiprocessing.get_context("spawn")), or fork before a classifier is loaded'
        )


def _note_fork() -> None:
    global _left_behind
    _left_behind = _left_behind or _has_run()


def _has_run() -> bool:
    # TensorFlow itself says it nowhere without being set up by the question.
    context = getattr(sys.modules.get("tensorflow.python.eager.context"), "_context", None)
    return getattr(context, "_context_handle", None) is not None


# Not on Windows, which knows no forks.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
