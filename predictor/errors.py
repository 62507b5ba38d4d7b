"""What a client can get wrong. Every one of these is answered with its status and `{"error": message}`."""

from http import HTTPStatus


class ClientError(Exception):
    """`message` is one sentence for the client."""

    status = HTTPStatus.BAD_REQUEST


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
