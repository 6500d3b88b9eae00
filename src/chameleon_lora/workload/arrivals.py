"""When do requests arrive?"""

import random

from chameleon_lora.errors import ConfigError


def poisson_arrivals(rate_per_s: float, duration_s: float, rng: random.Random) -> tuple[float, ...]:
    """Arrival times in [0, duration_s), ascending, with exponential gaps of mean 1 / rate_per_s.

    The same `rng` state at twice the rate gives the same gaps, halved.

    Raises:
        ConfigError: the rate or the duration is not above 0.
    """
    if rate_per_s <= 0.0 or duration_s <= 0.0:
        raise ConfigError(
            f"a Poisson stream of {rate_per_s} requests/s over {duration_s} s is empty: "
            "give a rate and a duration above 0"
        )
    times: list[float] = []
    now_s = rng.expovariate(1.0) / rate_per_s
    while now_s < duration_s:
        times.append(now_s)
        now_s += rng.expovariate(1.0) / rate_per_s
    return tuple(times)
