"""What a client is told when its request is not served."""

from __future__ import annotations


class RequestError(Exception):
    """A request that is refused or has failed: `message` is a sentence, `status` the HTTP status.

    `param` names the field that is wrong and `code` is a word for programs, as in OpenAI's error object.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
