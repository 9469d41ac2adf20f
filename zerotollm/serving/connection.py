"""A connection of the server that nobody can hold open without asking anything."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""The head of a request must have come so long after the connection was made, or after the last answer."""


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for ever for the rest of a head, with a time-out."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_request()

    def _await_request(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if (
            self.cycle is None or self.cycle.response_complete
        ):  # else the end of that answer sets the next timer
            self.timeout_keep_alive_handler()
