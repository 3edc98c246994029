"""Who allocates socket buffers: allocations from the skbuff caches by call site.

Measures
    Allocations and bytes by (cache, kernel function) from the slab caches named ``skbuff_*``:
    heads, clones, small data areas, extensions. Bytes are the caches' object size with its padding.
Hook
    Raw tracepoint kmem_cache_alloc (Linux 6.1 or newer: earlier ones do not name the cache);
    probes/bpf/skb_allocs.c.
Cost
    Every slab allocation of the host makes one map lookup. In the full set only.
Misses
    Data areas above the small size, which come from kmalloc or page fragments; heads that NAPI
    takes from its own cache in bulk. The allocations of the whole host count: in softirq there is
    no owner yet.
Checked against
    A process that queues 1,009 datagrams on a UNIX socket.
"""

from __future__ import annotations

from probes.bpf_loader.program import BpfObject
from probes.contract.probe import Target
from probes.ebpf import shared as bpf_shared
from probes.ebpf import sources as bpf_sources
from probes.ebpf.base import BpfProbe
from probes.ebpf.sources import SourceBuilder
from probes.symbols.kernel import kernel_symbols


class SkbAllocsProbe(BpfProbe):
    """Writes ``skb_allocs``."""

    shared = False
    name = "skb_allocs"
    tables = ("skb_allocs",)
    programs = ("skb_alloc",)

    def __init__(self) -> None:
        super().__init__()
        self._kernel = kernel_symbols()
        self._counts: dict[tuple[int, int], int] = {}
        self._caches: dict[int, tuple[str, int]] = {}

    def _source(self) -> SourceBuilder:
        return bpf_sources.skb_allocs

    def _attach(self, loaded: BpfObject, target: Target) -> None:
        self._kernel.load()
        self._links.append(loaded.attach_raw_tracepoint("skb_alloc", "kmem_cache_alloc"))

    def _read(self, loaded: BpfObject, at_ns: int) -> None:
        keys, values = loaded.maps["skb_alloc_counts"].items()
        for key, count in zip(keys.tolist(), values.sum(axis=1).tolist(), strict=True):
            news = count - self._counts.get(key, 0)
            if not news:
                continue
            self._counts[key] = count
            self._recorded_count += news
            cache, location = key
            name, size_bytes = self._cache(loaded, cache)
            place = self._kernel.name(location - 1)  # a return address, as in a stack
            self.writers[0].append(at_ns, name, place, news, news * size_bytes)
        self._count_losses(bpf_shared.lost(loaded, "skb_allocs"))

    def _cache(self, loaded: BpfObject, address: int) -> tuple[str, int]:
        if address not in self._caches:
            found = loaded.maps["known_caches"].get(address)
            if found is None:
                return hex(address), 0
            _, size_bytes, name = found[0].tolist()
            self._caches[address] = (name.decode(errors="replace"), size_bytes)
        return self._caches[address]
