"""What does a line of an Azure LLM inference trace hold?

Source: Azure/AzurePublicDataset, "Azure LLM inference trace" of 2023 and of 2024 (TIMESTAMP,
ContextTokens, GeneratedTokens), licence CC-BY 4.0; described in Patel et al., "Splitwise: Efficient
Generative LLM Inference Using Phase Splitting", ISCA 2024, and Stojkovic et al., "DynamoLLM",
HPCA 2025.
"""

from datetime import UTC, datetime

from chameleon_lora.workload.reading import MalformedError, Reading, tokens

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_ROW = "time,input tokens,output tokens, as 2023-11-16 18:15:46.6805900,374,44"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_azure_header(line: str) -> bool:
    """Whether `line` names the trace's columns, in its order."""
    return tuple(name.strip().strip('"') for name in line.split(",")) == COLUMNS


def parse_azure(line: str) -> Reading:
    """The request of one line below the header, to the microsecond; a time without zone is UTC.

    Raises:
        MalformedError: the line does not hold a time and two numbers of tokens.
    """
    cells = line.split(",")
    if len(cells) != len(COLUMNS):
        raise MalformedError(line, _ROW)
    when, context, generated = cells
    return Reading(
        _microseconds(when),
        None,
        tokens(_whole(context), "ContextTokens"),
        tokens(_whole(generated), "GeneratedTokens"),
    )


def _microseconds(text: str) -> int:
    """Since 1970. The 2023 trace has seven decimals; the last is dropped."""
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise MalformedError(
            text,
            "in TIMESTAMP a time as 2023-11-16 18:15:46.6805900 or "
            "2024-05-10 00:00:00.009930+00:00",
        ) from error
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _whole(text: str) -> object:
    """A number, or the text itself, which is then refused by name."""
    try:
        return int(text)
    except ValueError:
        return text.strip()
