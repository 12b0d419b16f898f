"""`hetconv export`."""


def export() -> None:
    """Placeholder replaced below."""
