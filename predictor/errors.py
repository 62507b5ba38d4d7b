"""What a client can get wrong. Every one of these is answered with its status and `{"error": message}`."""

from http import HTTPStatus
from typing import Final

MAX_CHARACTERS: Final = 1000
"""A message repeats what the client sent, whatever its length; gRPC holds no more than 8 kB of it."""


class ClientError(Exception):
    """`message` is one sentence for the client, cut off at `MAX_CHARACTERS`."""

    status = HTTPStatus.BAD_REQUEST

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= MAX_CHARACTERS else message[: MAX_CHARACTERS - 1] + "…")


class InvalidInput(ClientError):
    """The message names field, expected and got."""


class TooLarge(ClientError):
    """The body or the batch is above the server's limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class NotFound(ClientError):
    """No such model or path."""

    status = HTTPStatus.NOT_FOUND


class UnsupportedEncoding(ClientError):
    """The body is compressed."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class TooSlow(ClientError):
    """The body did not come in time."""

    status = HTTPStatus.REQUEST_TIMEOUT


class Busy(ClientError):
    """What clients send at once is more than one server may hold; the same request may be sent again.

    Not a 5xx: nothing is wrong with the model, and whoever sends too much at once must neither have a healthy server
    taken out of the gateway's rotation nor a candidate convicted of errors. A candidate that refuses more than
    stable is still noticed: refusals are counted, and judged, as requests rejected.
    """

    status = HTTPStatus.TOO_MANY_REQUESTS
