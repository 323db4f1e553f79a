"""A Redis store over TLS, with real servers and certificates: what works, and what is said when it cannot."""

from pathlib import Path

import pytest
import trio
from tests.redis_servers import CERTIFICATES, RedisServers

from callboard.runtime.core.errors import StoreRefused, StoreUnavailable
from callboard.stores.redis_link import Link
from callboard.stores.redis_url import RedisSettings

CA = f"ssl_ca_certs={CERTIFICATES / 'authority.pem'}"
CLIENT = f"ssl_certfile={CERTIFICATES / 'client.pem'}&ssl_keyfile={CERTIFICATES / 'client.key'}"
QUICK = "timeout_seconds=1"


async def ping(url: str) -> bytes:
    link = Link(RedisSettings.of_url(url), channel="callboard:news")
    try:
        await link.open()
        await link.news(lambda caller, ear: ear.listen(0.01))
        return await link.write(lambda line: line.command("PING"))  # type: ignore[attr-defined]
    finally:
        await link.aclose()


async def refused(url: str) -> str:
    with pytest.raises(StoreRefused) as caught:
        await ping(url)
    return str(caught.value)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_tls(redis_servers: RedisServers, scheme: str, host: str) -> None:
    server = redis_servers.server(tls=True, login=("ann", "p:w/@%"))
    assert await ping(f"{scheme}://ann:p%3Aw%2F%40%25@{host}:{server.port}/2?{CA}") == b"PONG"


async def test_a_client_certificate(redis_servers: RedisServers, tmp_path: Path) -> None:
    server = redis_servers.server(tls=True)
    server.run("CONFIG", "SET", "tls-auth-clients", "yes")
    url = f"rediss://localhost:{server.port}"
    assert await ping(f"{url}?{CA}&{CLIENT}") == b"PONG"
    assert "does not take our certificate" in await refused(f"{url}?{CA}")
    assert "name no files" in await refused(f"{url}?{CA}&ssl_certfile={tmp_path}/none.pem")
    other = f"ssl_certfile={CERTIFICATES / 'client.pem'}&ssl_keyfile={CERTIFICATES / 'server.key'}"
    assert "not the key" in await refused(f"{url}?{CA}&{other}")


async def test_an_encrypted_key(redis_servers: RedisServers) -> None:
    server = redis_servers.server(tls=True)
    locked = f"ssl_certfile={CERTIFICATES / 'server.pem'}&ssl_keyfile={CERTIFICATES / 'locked.key'}"
    url = f"rediss://localhost:{server.port}?{CA}&{locked}"
    word = _word_of_the_locked_key()
    assert await ping(f"{url}&ssl_password={word}") == b"PONG"
    said = await refused(f"{url}&ssl_password=hunter2")
    assert "ssl_password" in said and "hunter2" not in said
    assert "ssl_password" in await refused(url)


async def test_a_certificate_that_cannot_be_trusted(redis_servers: RedisServers, tmp_path: Path) -> None:
    server = redis_servers.server(tls=True)
    assert "ssl_ca_certs=" in await refused(f"rediss://localhost:{server.port}")
    # 127.1 is this machine too, and no name of the certificate.
    wrong = f"rediss://127.1:{server.port}?{CA}"
    assert "another host name" in await refused(wrong)
    assert await ping(f"{wrong}&ssl_check_hostname=false") == b"PONG"
    assert "names no file" in await refused(f"rediss://localhost:{server.port}?ssl_ca_certs={tmp_path}/none.pem")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    assert "PEM" in await refused(f"rediss://localhost:{server.port}?ssl_ca_certs={empty}")


async def test_plain_to_a_tls_port_and_tls_to_a_plain_port(redis_servers: RedisServers) -> None:
    secure = redis_servers.server(tls=True)
    plain = redis_servers.server()
    assert "use rediss://" in await refused(f"redis://localhost:{secure.port}?{QUICK}")
    for _ in range(5):
        # A plain server reads lines: whether it says anything depends on the random bytes of the greeting.
        assert "use redis://" in await refused(f"rediss://localhost:{plain.port}?{CA}&{QUICK}")


async def test_a_tls_server_that_is_away_is_only_away(redis_servers: RedisServers) -> None:
    server = redis_servers.server(tls=True)
    server.pause()
    with pytest.raises(StoreUnavailable):
        await ping(f"rediss://localhost:{server.port}?{CA}&timeout_seconds=0.3")
    server.resume()
    server.kill()
    with pytest.raises(StoreUnavailable):
        await ping(f"rediss://localhost:{server.port}?{CA}")


async def test_a_cancelled_call_over_tls(redis_servers: RedisServers) -> None:
    server = redis_servers.server(tls=True)
    link = Link(RedisSettings.of_url(f"rediss://localhost:{server.port}?{CA}&timeout_seconds=300"), channel="c")
    await link.open()
    for _ in range(10):
        with trio.fail_after(60):
            with trio.move_on_after(0.05) as scope:
                await link.news(lambda caller, ear: ear.listen(3600))
            assert scope.cancelled_caught
            assert await link.write(lambda line: line.command("ECHO", "x")) == b"x"  # type: ignore[attr-defined]
    server.pause()
    with trio.fail_after(60):
        with trio.move_on_after(0.05):
            await link.write(lambda line: line.command("ECHO", "late"))  # type: ignore[attr-defined]
        await link.aclose()
    server.resume()


def _word_of_the_locked_key() -> str:
    """``make.sh`` says with which word it was locked."""
    text = (CERTIFICATES / "make.sh").read_text()
    return text.split("pass:")[1].split()[0].strip("'\"")
