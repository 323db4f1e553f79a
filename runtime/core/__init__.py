"""The pure floor: records, commands, the transition table, events and the store protocol.

Nothing in here does I/O, reads a clock or draws a random number; times, tokens and ids are arguments.
"""

__all__: list[str] = []
