// Time between becoming runnable and running, of watched processes, in powers of two.

struct runq_key {
  u32 tgid;
  u32 bucket;
};
BPF_HASH(runnable_since, u32, u64, 65536);  // by the kernel's own number of the thread
BPF_TABLE("percpu_hash", struct runq_key, u64, runq_counts, 32768);

static __always_inline u32 tgid_of(struct task_struct *task) {
#if PID_NAMESPACED
  return who_is(task).tgid;
#else
  u32 tgid = 0;
  bpf_probe_read_kernel(&tgid, sizeof(tgid), &task->tgid);
  return tgid;
#endif
}

static __always_inline int becomes_runnable(struct task_struct *task) {
  u32 tgid = tgid_of(task), tid = 0;
  if (!watched_pids.lookup(&tgid)) return 0;
  bpf_probe_read_kernel(&tid, sizeof(tid), &task->pid);
  u64 now_ns = bpf_ktime_get_ns();
  if (runnable_since.update(&tid, &now_ns)) lose(LOST_RUNQ);
  return 0;
}

// sched_wakeup (task), sched_wakeup_new (task)
int runq_wakeup(unsigned long long *ctx) {
  return becomes_runnable((struct task_struct *)ctx[0]);
}

// sched_switch (preempt, prev, next, ...), positions by type
int runq_switch(unsigned long long *ctx) {
  struct task_struct *prev = (struct task_struct *)ctx[SWITCH_PREV_ARG];
  struct task_struct *next = (struct task_struct *)ctx[SWITCH_NEXT_ARG];
  u64 state = 0;
  bpf_probe_read_kernel(&state, sizeof(prev->state), &prev->state);
  // TASK_RUNNING, or preempted on its way to sleep: it lost the CPU and did not give it up
  if (!state || (ctx[0] & 1)) becomes_runnable(prev);

  u32 tid = 0;
  bpf_probe_read_kernel(&tid, sizeof(tid), &next->pid);
  u64 *since_ns = runnable_since.lookup(&tid);
  if (!since_ns) return 0;
  u64 waited_ns = bpf_ktime_get_ns() - *since_ns;
  runnable_since.delete(&tid);
  struct runq_key key = {.bucket = waited_ns ? bpf_log2l(waited_ns) - 1 : 0};
  key.tgid = tgid_of(next);
  u64 *count = runq_counts.lookup(&key);
  if (count) {
    *count += 1;
    return 0;
  }
  u64 one = 1;
  if (runq_counts.update(&key, &one)) lose(LOST_RUNQ);
  return 0;
}
