"""callboard: asynchronous HTTP endpoints for Quart, run by actors.

The floors, from the ground up: ``callboard.runtime`` (the actors, and under them the pure ``callboard.runtime.core``),
``callboard.stores`` (drivers), ``callboard.web`` (the Quart extension and the command line), ``callboard.testing``.
This package itself stays light: importing it loads neither trio nor Quart.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
