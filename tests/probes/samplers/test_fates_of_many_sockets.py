"""``open_fates`` looks at each socket, so where there are very many it does not look."""

from __future__ import annotations

import socket

from probes.contract.clock import now_ns
from probes.samplers import open_fates


def test_a_namespace_with_very_many_sockets_is_left_alone(monkeypatch):
    monkeypatch.setattr(open_fates, "_SOCKETS_MOST", 0)
    probe = open_fates.OpenFatesProbe()
    with socket.create_server(("127.0.0.1", 0)):
        assert open_fates.tcp_sockets_in_use() >= 1
        probe._look(now_ns())
    assert "none is looked at one by one" in probe.note
    assert probe.lost_count == 1
