"""Who has not the certificate of a run speaks to none of its parts."""

import asyncio

import pytest

from harness.hosts.certificate import new_certificate
from harness.hosts.cluster import Cluster
from harness.hosts.dask_settings import turn_off
from harness.hosts.hosts_file import parse_hosts

TWO = {
    "controller": {"address": "127.0.0.1"},
    "host": [
        {"name": "s", "address": "127.0.0.1", "role": "server"},
        {"name": "a", "address": "127.0.0.1"},
    ],
}


async def spoken_to(address, made):
    from distributed import Client, Security

    turn_off()
    security = Security(
        require_encryption=True,
        tls_ca_file=made.certificate,
        tls_client_cert=made.certificate,
        tls_client_key=made.key,
    )
    client = Client(address, asynchronous=True, security=security, timeout=3, set_as_default=False)
    try:
        await client
        return True
    except (OSError, TimeoutError):
        return False
    finally:
        await client.close()


@pytest.mark.filterwarnings("ignore")
def test_another_certificate_is_another_run():
    async def tried():
        cluster = Cluster(parse_hosts(TWO, "hosts.toml"), "", None)
        try:
            await cluster.open(lambda: False)
            address = cluster.scheduler_address
            assert address.startswith("tls://127.0.0.1:")
            return await spoken_to(address, new_certificate("connscope"))
        finally:
            await cluster.close()

    assert asyncio.run(tried()) is False
