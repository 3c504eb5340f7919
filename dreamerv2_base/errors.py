"""Errors that are the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake outside the program: one line, exit code 2, no traceback.

    The message says what was expected, what was found, where, and the command
    or change that mends it. `code` is the exit code.
    """

    code = 2

    def __init__(self, message: str):
        super().__init__(' '.join(message.split()))


class NoRoomError(UserError):
    """The device's memory is full. It may be free again later: exit code 4,
    and a sweep tries such a run once more."""

    code = 4
