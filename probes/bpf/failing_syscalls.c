// raw tracepoint sys_exit (regs, ret): fires for every system call of the host, so the common case
// leaves after a count of its own CPU and three compares. The count says what watching costs.

struct failure_key {
  u32 tgid;
  u32 nr;
  u32 error;
};
struct failure {
  u64 count;
  u64 first_ns;
  u64 last_ns;
};
struct failure_record_key {
  struct failure_key key;
  u32 ordinal;
};
struct failure_record {
  u64 at_ns;
  u32 tid;
  s32 kernel_stack;
  s32 user_stack;
  u32 unused;
};
BPF_TABLE("percpu_hash", struct failure_key, struct failure, failures, 4096);
BPF_TABLE("hash", struct failure_record_key, struct failure_record, failure_records, 4096);
BPF_STACK_TRACE(failure_traces, 4096);
BPF_TABLE("percpu_array", int, u64, calls_passed, 1);

int failing_syscalls(unsigned long long *ctx) {
  int zero = 0;
  u64 *passed = calls_passed.lookup(&zero);
  if (passed) *passed += 1;
  long ret = (long)ctx[1];
  if (ret >= 0) return 0;
  if (ret == -ERRNO_EAGAIN || ret == -ERRNO_EINPROGRESS || ret == -ERRNO_EINTR) return 0;
  if (ret <= -512) return 0;  // ERESTART*, never seen by the caller; or an address, not an errno

  u64 id = bpf_get_current_pid_tgid();
  u32 tgid = id >> 32;
  if (!watched_pids.lookup(&tgid)) return 0;

  struct pt_regs *regs = (struct pt_regs *)ctx[0];
  u64 nr = 0;
  bpf_probe_read_kernel(&nr, sizeof(regs->nr), &regs->nr);
  struct failure_key key = {.tgid = tgid, .nr = (u32)nr, .error = (u32)-ret};
  u64 now_ns = bpf_ktime_get_ns();
  u64 seen = 0;
  struct failure *failure = failures.lookup(&key);
  if (failure) {
    seen = failure->count;
    failure->count = seen + 1;
    failure->last_ns = now_ns;
  } else {
    struct failure first = {.count = 1, .first_ns = now_ns, .last_ns = now_ns};
    if (failures.update(&key, &first)) lose(LOST_FAILURES);
  }
  if (seen >= STACKS_PER_KEY) return 0;

  // The count above is of this CPU; the records are of all, so the last one says when to stop.
  struct failure_record_key record_key = {.key = key, .ordinal = STACKS_PER_KEY - 1};
  if (failure_records.lookup(&record_key)) return 0;
  struct failure_record record = {.at_ns = now_ns, .tid = (u32)id};
  record.kernel_stack = failure_traces.get_stackid(ctx, 0);
  record.user_stack = failure_traces.get_stackid(ctx, BPF_F_USER_STACK);
#pragma unroll
  for (u32 ordinal = 0; ordinal < STACKS_PER_KEY; ordinal++) {
    record_key.ordinal = ordinal;
    if (!failure_records.insert(&record_key, &record)) return 0;
  }
  lose(LOST_FAILURE_STACKS);
  return 0;
}
