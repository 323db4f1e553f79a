"""Print the ids of the tests that failed in the last run of pytest here, a line each."""

import json
from pathlib import Path

found = Path(".pytest_cache/v/cache/lastfailed")
if found.exists():
    print("\n".join(name for name, failed in json.loads(found.read_text()).items() if failed))
