// cgroup/connect4: lets AFTER_COUNT connects of the cgroup pass, then fails every one with ENOBUFS.
// Returning 0 alone would be EPERM; the errno is set by bpf_set_retval (Linux 5.18).

static int (*set_retval)(int) = (void *)187;  // BPF_FUNC_set_retval

BPF_ARRAY(connects, u64, 1);

int connect_enobufs(void *ctx) {
  int zero = 0;
  u64 *count = connects.lookup(&zero);
  if (!count) return 1;
  if (*count >= AFTER_COUNT) {
    set_retval(-ERRNO_ENOBUFS);
    return 0;
  }
  __sync_fetch_and_add(count, 1);
  return 1;
}
