// raw tracepoint kmem_cache_alloc (call site, pointer, cache, ...): allocations from the caches
// whose name begins with skbuff_. A cache is judged once, by its address.

struct cache_info {
  u32 is_skb;
  u32 size;
  char name[32];
};
BPF_TABLE("hash", u64, struct cache_info, known_caches, 1024);

struct alloc_key {
  u64 cache;
  u64 location;
};
BPF_TABLE("percpu_hash", struct alloc_key, u64, skb_alloc_counts, 2048);

int skb_alloc(unsigned long long *ctx) {
  u64 address = ctx[ALLOC_CACHE_ARG];
  struct cache_info *cache = known_caches.lookup(&address);
  if (!cache) {
    struct cache_info info = {};
    struct kmem_cache *slab = (struct kmem_cache *)address;
    void *name = 0;
    bpf_probe_read_kernel(&name, sizeof(name), &slab->name);
    bpf_probe_read_kernel(&info.size, sizeof(info.size), &slab->size);
    bpf_probe_read_kernel_str(info.name, sizeof(info.name), name);
    info.is_skb = info.name[0] == 's' && info.name[1] == 'k' && info.name[2] == 'b' &&
                  info.name[3] == 'u' && info.name[4] == 'f' && info.name[5] == 'f' &&
                  info.name[6] == '_';
    if (known_caches.update(&address, &info)) lose(LOST_SKB_ALLOCS);
    if (!info.is_skb) return 0;
  } else if (!cache->is_skb) {
    return 0;
  }
  struct alloc_key key = {.cache = address, .location = ctx[0]};
  u64 *count = skb_alloc_counts.lookup(&key);
  if (count) {
    *count += 1;
    return 0;
  }
  u64 one = 1;
  if (skb_alloc_counts.update(&key, &one)) lose(LOST_SKB_ALLOCS);
  return 0;
}
