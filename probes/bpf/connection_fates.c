// raw tracepoint sys_exit (regs, ret): what a server does with each connection that it accepts, by
// the calls that name its descriptor. One entry a connection while it is open, one count a fate.

enum call_kind { CALL_OTHER, CALL_ACCEPT, CALL_READ, CALL_WRITE, CALL_CLOSE };
enum fate { FATE_ACCEPTED, FATE_CLOSED_UNREAD, FATE_CLOSED_UNANSWERED, FATE_CLOSED_ANSWERED,
            FATE_CLOSED_AFTER_PEER };

struct fate_key {
  u32 tgid;
  u32 fate;
};
struct fate_count {
  u64 count;
  u64 at_once_count;
  u64 first_ns;
  u64 last_ns;
};
struct served_key {
  u32 tgid;
  s32 fd;
};
struct served {
  u64 accepted_ns;
  u32 is_read;
  u32 is_answered;
  u32 is_left;  // the peer closed or reset it
  u32 unused;
};
BPF_ARRAY(call_kinds, u8, 1024);
BPF_HASH(fate_pids, u32, u8, 1024);
BPF_TABLE("lru_hash", struct served_key, struct served, served_connections, 65536);
BPF_TABLE("percpu_hash", struct fate_key, struct fate_count, fate_counts, 4096);

static __always_inline void count_fate(u32 tgid, u32 fate, u32 at_once, u64 now_ns) {
  struct fate_key key = {.tgid = tgid, .fate = fate};
  struct fate_count *known = fate_counts.lookup(&key);
  if (known) {
    known->count += 1;
    known->at_once_count += at_once;
    known->last_ns = now_ns;
    return;
  }
  struct fate_count first = {
      .count = 1, .at_once_count = at_once, .first_ns = now_ns, .last_ns = now_ns};
  if (fate_counts.update(&key, &first)) lose(LOST_FATES);
}

int connection_fates(unsigned long long *ctx) {
  u32 tgid = current_who().tgid;
  if (!fate_pids.lookup(&tgid)) return 0;
  struct pt_regs *regs = (struct pt_regs *)ctx[0];
  u64 nr = 0;
  bpf_probe_read_kernel(&nr, sizeof(regs->nr), &regs->nr);
  int index = (int)nr;
  u8 *kind = call_kinds.lookup(&index);
  if (!kind || *kind == CALL_OTHER) return 0;

  long ret = (long)ctx[1];
  u64 now_ns = bpf_ktime_get_ns();
  if (*kind == CALL_ACCEPT) {
    if (ret < 0) return 0;
    struct served_key key = {.tgid = tgid, .fd = (s32)ret};
    struct served fresh = {.accepted_ns = now_ns};
    served_connections.update(&key, &fresh);
    count_fate(tgid, FATE_ACCEPTED, 0, now_ns);
    return 0;
  }
  u64 first = 0;
  bpf_probe_read_kernel(&first, sizeof(regs->arg0), &regs->arg0);
  struct served_key key = {.tgid = tgid, .fd = (s32)first};
  struct served *served = served_connections.lookup(&key);
  if (!served) return 0;
  if (*kind == CALL_READ) {
    if (ret > 0) served->is_read = 1;
    else if (ret == 0 || ret == -ERRNO_ECONNRESET) served->is_left = 1;
  } else if (*kind == CALL_WRITE) {
    if (ret > 0) served->is_answered = 1;
    else if (ret == -ERRNO_ECONNRESET || ret == -ERRNO_EPIPE) served->is_left = 1;
  } else if (*kind == CALL_CLOSE) {
    u32 fate = served->is_left       ? FATE_CLOSED_AFTER_PEER
               : served->is_answered ? FATE_CLOSED_ANSWERED
               : served->is_read     ? FATE_CLOSED_UNANSWERED
                                     : FATE_CLOSED_UNREAD;
    u32 at_once = now_ns - served->accepted_ns < AT_ONCE_NS;
    served_connections.delete(&key);
    count_fate(tgid, fate, at_once, now_ns);
  }
  return 0;
}
