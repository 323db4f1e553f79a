"""Print the ids of the tests that failed in the last run of pytest here, a line each; nothing if it was not a whole run."""

import json
from pathlib import Path

values = Path(".pytest_cache/v")
# tests/conftest.py notes it: where pytest itself has failed, or was stopped, tests may not have run at all.
is_whole = values / "callboard" / "is_whole"
found = values / "cache" / "lastfailed"
if found.exists() and is_whole.exists() and json.loads(is_whole.read_text()):
    for name in json.loads(found.read_text()):
        print(name)
