"""Where an adapter is, in the words of the server's pages."""

from chameleon_lora.policy.entry import Entry, Tier

DEVICE = "device"
TIERS = ("disk", "loading", "host", DEVICE, "slot")


def tier_of(entry: Entry) -> str:
    """The fastest place where the adapter is, of TIERS; a copy under way does not count."""
    if entry.tier is Tier.HOST and entry.is_on_device:
        return DEVICE
    return entry.tier.name.lower()
