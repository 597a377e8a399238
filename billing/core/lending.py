"""Lending: how much of a tenant's money goes to the gateways, and when it comes back."""

# A Redis integer has 63 bits; half of that for one float leaves room for every reservation beside it.
FLOAT_MAX_PICO = 4 * 10**18


def lend_amount(*, available: int, free: int, spend_10_min: int, wanted: int) -> int:
    """Pico-units to lend now: min(available, max(ten minutes of recent spend, what is wanted)).

    Without a want the float is only refilled, once less than half of ten minutes of spend is free.
    """
    if wanted <= 0 and free * 2 >= spend_10_min:
        return 0
    return max(0, min(available, max(spend_10_min, wanted), FLOAT_MAX_PICO - free))


def return_amount(*, free: int, spend_10_min: int, idle: bool) -> int:
    """Pico-units to take back: everything free of a float that nobody used or asked for."""
    return free if idle and spend_10_min == 0 and free > 0 else 0
