// raw tracepoint sys_exit (regs, ret): fires for every system call of the host, so the common case
// leaves after a count of its own CPU and three compares. The count says what watching costs.
//
// EAGAIN is an answer and no failure, but of the calls that make a thread or a process: those are at
// a limit. How many mappings and threads the process had when such a call or an allocation failed is
// kept, because a moment later it may have given some back, or be gone.

struct failure_key {
  u32 tgid;
  u32 nr;
  u32 error;
};
struct failure {
  u64 count;
  u64 first_ns;
  u64 last_ns;
  u64 address_space_pages;  // the most at any failure, as the next two; 0 when it was not looked at
  u32 mappings;
  u32 threads;
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

static __always_inline u64 number_of(struct pt_regs *regs) {
  u64 nr = 0;
  bpf_probe_read_kernel(&nr, sizeof(regs->nr), &regs->nr);
  return nr;
}

// Of these EAGAIN is a limit: no more tasks, or the queue of a Unix socket's listener is full.
static __always_inline int means_it_again(u64 nr) {
  return nr == NR_CONNECT || nr == NR_CLONE || nr == NR_CLONE3 || nr == NR_FORK || nr == NR_VFORK;
}

static __always_inline void note_size(struct failure *failure) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  struct mm_struct *mm = 0;
  struct signal_struct *group = 0;
  u64 pages = 0;
  u32 mappings = 0, threads = 0;
  bpf_probe_read_kernel(&mm, sizeof(mm), &task->mm);
  bpf_probe_read_kernel(&group, sizeof(group), &task->signal);
  bpf_probe_read_kernel(&mappings, sizeof(mm->map_count), &mm->map_count);
  bpf_probe_read_kernel(&pages, sizeof(mm->total_vm), &mm->total_vm);
  bpf_probe_read_kernel(&threads, sizeof(group->nr_threads), &group->nr_threads);
  if (mappings > failure->mappings) failure->mappings = mappings;
  if (pages > failure->address_space_pages) failure->address_space_pages = pages;
  if (threads > failure->threads) failure->threads = threads;
}

int failing_syscalls(unsigned long long *ctx) {
  int zero = 0;
  u64 *passed = calls_passed.lookup(&zero);
  if (passed) *passed += 1;
  long ret = (long)ctx[1];
  if (ret >= 0) return 0;
  if (ret == -ERRNO_EINPROGRESS || ret == -ERRNO_EINTR) return 0;
  if (ret <= -512) return 0;  // ERESTART*, never seen by the caller; or an address, not an errno
  u64 nr = number_of((struct pt_regs *)ctx[0]);
  if (ret == -ERRNO_EAGAIN && !means_it_again(nr)) return 0;

  struct who who = current_who();
  if (!watched_pids.lookup(&who.tgid)) return 0;

  struct failure_key key = {.tgid = who.tgid, .nr = (u32)nr, .error = (u32)-ret};
  int at_a_limit = ret == -ERRNO_ENOMEM || ret == -ERRNO_EAGAIN;
  u64 now_ns = bpf_ktime_get_ns();
  u64 seen = 0;
  struct failure *failure = failures.lookup(&key);
  if (failure) {
    seen = failure->count;
    failure->count = seen + 1;
    failure->last_ns = now_ns;
    if (at_a_limit) note_size(failure);
  } else {
    struct failure first = {.count = 1, .first_ns = now_ns, .last_ns = now_ns};
    if (at_a_limit) note_size(&first);
    if (failures.update(&key, &first)) lose(LOST_FAILURES);
  }
  if (seen >= STACKS_PER_KEY) return 0;

  // The count above is of this CPU; the records are of all, so the last one says when to stop.
  struct failure_record_key record_key = {.key = key, .ordinal = STACKS_PER_KEY - 1};
  if (failure_records.lookup(&record_key)) return 0;
  struct failure_record record = {.at_ns = now_ns, .tid = who.tid};
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
