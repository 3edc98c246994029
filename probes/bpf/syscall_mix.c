// raw tracepoint sys_exit (regs, ret): every call of a few chosen processes. Attached only while
// there are some, since this is the expensive way to count.

struct mix_key {
  u32 tgid;
  u32 nr;
};
struct mix {
  u64 count;
  u64 failed;
};
BPF_HASH(mix_pids, u32, u8, 16384);
BPF_TABLE("percpu_hash", struct mix_key, struct mix, mix_counts, 8192);

int syscall_mix(unsigned long long *ctx) {
  struct who who = current_who();
  if (!mix_pids.lookup(&who.tgid)) return 0;
  struct pt_regs *regs = (struct pt_regs *)ctx[0];
  u64 nr = 0;
  bpf_probe_read_kernel(&nr, sizeof(regs->nr), &regs->nr);
  struct mix_key key = {.tgid = who.tgid, .nr = (u32)nr};
  u64 failed = (long)ctx[1] < 0;
  struct mix *mix = mix_counts.lookup(&key);
  if (mix) {
    mix->count += 1;
    mix->failed += failed;
    return 0;
  }
  struct mix first = {.count = 1, .failed = failed};
  if (mix_counts.update(&key, &first)) lose(LOST_SYSCALL_MIX);
  return 0;
}
