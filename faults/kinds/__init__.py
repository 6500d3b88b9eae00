"""Every fault there is, those that end the server last."""

from chameleon_lora.errors import ConfigError
from faults.fault import InflictedFault
from faults.kinds import broken_adapters, crowds, deaths, rude_clients, slow_disks

FAULTS: tuple[InflictedFault, ...] = (
    *broken_adapters.FAULTS,
    *slow_disks.FAULTS,
    *crowds.FAULTS,
    *rude_clients.FAULTS,
    *deaths.FAULTS,
)


def named(words: list[str]) -> tuple[InflictedFault, ...]:
    """The faults in whose names one of the words stands; all, if there are no words.

    Raises:
        ConfigError: a word stands in none.
    """
    for word in words:
        if not any(word in fault.name for fault in FAULTS):
            names = "; ".join(fault.name for fault in FAULTS)
            raise ConfigError(f"no fault is named {word!r}; there are: {names}")
    return tuple(f for f in FAULTS if not words or any(word in f.name for word in words))
