"""Records made from few numbers."""

from chameleon_lora.metrics.record import RequestRecord


def record(
    index: int,
    arrival_s: float,
    token_times_s: tuple[float, ...],
    *,
    sent_s: float | None = None,
    error: str | None = None,
) -> RequestRecord:
    """A record whose answer ends with its last token, and has as many tokens as times."""
    return RequestRecord(
        index=index,
        adapter="a",
        arrival_s=arrival_s,
        sent_s=arrival_s if sent_s is None else sent_s,
        first_token_s=token_times_s[0] if token_times_s else None,
        token_times_s=token_times_s,
        end_s=token_times_s[-1] if token_times_s else arrival_s,
        prompt_tokens=10,
        output_tokens=len(token_times_s),
        error=error,
    )
