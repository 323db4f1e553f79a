"""Drivers of the store protocol (``callboard.runtime.core.store``) and the public suite that holds them to it.

``opening`` makes a store from a URL, ``conformance`` checks any driver. Nothing in here knows actors or the web.
"""

__all__: list[str] = []
