"""The Quart extension, the command line and the server."""

__all__: list[str] = []
