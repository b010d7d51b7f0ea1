"""HTTP/1.1 as uvicorn speaks it, with limits on what comes before a request: bytes of headers, and seconds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol


MAX_HEADER_BYTES = 2**15


class LimitedProtocol(HttpToolsProtocol):
    """A connection whose client must send the headers of a request within time, and few of them."""

    header_seconds = 30.0
    """Seconds to the end of the headers: from the connection for the first request, from the first byte for others."""

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _reads_headers = True

    def connection_made(self, transport: Any) -> None:
        """Start the clock: a client that says nothing holds no connection for ever."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of headers before they are parsed."""
        if self.transport.is_closing():
            return
        if self._reads_headers:
            self._start_clock()
            self._header_bytes += len(data)
            # What is received at once may hold more than headers; it is at most 256 KiB.
            if self._header_bytes > MAX_HEADER_BYTES and b"\r\n\r\n" not in data[: MAX_HEADER_BYTES + 4]:
                self._refuse(431, f"the headers of a request have at most {MAX_HEADER_BYTES} bytes")
                return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer as the rest of the server does."""
        self._refuse(400, "this is no valid request of HTTP/1.1")

    def on_headers_complete(self) -> None:
        """The request begins."""
        self._stop_clock()
        self._reads_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request may follow."""
        self._reads_headers, self._header_bytes = True, 0
        super().on_message_complete()

    def _start_clock(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._time_out)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(408, f"the headers of the request did not arrive within {self.header_seconds:g} seconds")

    def _refuse(self, status: int, sentence: str) -> None:
        self._stop_clock()
        if self.cycle is None or self.cycle.response_complete:  # else another answer is being written
            body = json.dumps({"error": sentence}).encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
