"""Server-sent events out of bytes, however the network cuts them."""

LONGEST_LINE_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventStream:
    """What is read of one stream of events (WHATWG HTML, section 9.2.6); lives as long as it.

    Lines end with LF, CRLF or CR. The `data` lines of an event are joined with LF; comments, other
    fields and events without data are passed over. Between two calls it holds one event that is not
    whole yet.
    """

    def __init__(self) -> None:
        self._line = b""
        self._data: list[bytes] = []
        self._is_first = True
        self._ended_with_cr = False

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that these bytes complete.

        Raises:
            ValueError: a line is longer than LONGEST_LINE_BYTES.
        """
        if b"\r" in data or self._ended_with_cr or self._is_first:
            data = self._normal(data)
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > LONGEST_LINE_BYTES:
            raise ValueError(f"a line of more than {LONGEST_LINE_BYTES} bytes")
        events = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
            elif not line:
                if payload := b"\n".join(self._data):
                    events.append(payload)
                self._data.clear()
            elif line == b"data":
                self._data.append(b"")
        return events

    def unfinished(self) -> bytes:
        """The payload so far of an event whose blank line has not come; its last line may lack LF."""
        return b"\n".join([*self._data, *([self._line[5:].strip()] if self._line else [])])

    def _normal(self, data: bytes) -> bytes:
        """The bytes with LF for each line end, and without a byte order mark before the first."""
        if self._is_first and data:
            self._is_first = False
            data = data.removeprefix(_BYTE_ORDER_MARK)
        if self._ended_with_cr and data:
            data = data.removeprefix(b"\n")  # its CR has ended the line already
            self._ended_with_cr = False
        if data.endswith(b"\r"):
            self._ended_with_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
