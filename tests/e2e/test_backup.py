"""A running server's file is copied as docs/operations.md says, and another server goes on from the copy."""

import re
import sys
from pathlib import Path

import pytest
import trio
from tests.e2e.harness import Site, check_file, document, post, until, until_ended

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()


async def test_a_server_goes_on_from_the_backup_of_another_that_ran(site: Site, tmp_path: Path) -> None:
    (source,) = re.findall(r"^```python\n(\"\"\"backup.py.*?)^```$", PAGE, re.M | re.S)
    script, copy = tmp_path / "backup.py", tmp_path / "copy.db"
    script.write_text(source)
    server = await site.start(max_concurrent_jobs=5)
    async with server.http() as http:
        ended = await post(http, "quick", value="ended")
        await until_ended(http, ended["id"])
        running = [await post(http, "second") for _ in range(5)]
        await until(lambda: len(site.journal.starts()) == 6, "five jobs run")
        waiting = [await post(http, "quick", value=number) for number in range(20)]
        await trio.run_process([sys.executable, str(script), str(site.database), str(copy)])
        later = await post(http, "quick", value="later")
    site.kill(server)

    other = await site.start(store=f"sqlite:///{copy}", max_concurrent_jobs=5)
    async with other.http() as http:
        for job in running:
            assert (await until_ended(http, job["id"]))["result"] == {"attempt": 2}
        for number, job in enumerate(waiting):
            assert (await until_ended(http, job["id"]))["result"] == {"value": number, "attempt": 1}
        assert (await document(http, ended["id"]))["result"] == {"value": "ended", "attempt": 1}
        assert (await http.get(f"/jobs/{later['id']}")).status_code == 404
    other.terminate()
    assert await other.ended() == 0
    assert not copy.with_name("copy.db-wal").exists()
    check_file(copy, tmp_path)
