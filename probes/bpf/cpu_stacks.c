// perf event cpu-clock on every core: one sample of a watched process, counted by both stacks. How
// many of them the maps hold grows with the cores: CPU_SAMPLES, CPU_TRACES.

struct sample_key {
  u32 tgid;
  u32 tid;
  s32 kernel_stack;
  s32 user_stack;
};
struct sample {
  u64 count;
  char comm[16];
};
BPF_TABLE("hash", struct sample_key, struct sample, cpu_samples, CPU_SAMPLES);
BPF_STACK_TRACE(cpu_traces, CPU_TRACES);

int cpu_sample(void *ctx) {
  struct who who = current_who();
  u32 zero = 0;
  if (!watched_pids.lookup(&who.tgid)) return 0;
  struct run_config *run = config.lookup(&zero);
  if (!run) return 0;
  if (run->paused) {
    lose(LOST_CPU_PAUSED);
    return 0;
  }
  struct sample_key key = {.tgid = who.tgid, .tid = who.tid};
  key.kernel_stack = cpu_traces.get_stackid(ctx, 0);
  key.user_stack = cpu_traces.get_stackid(ctx, BPF_F_USER_STACK);
  struct sample *sample = cpu_samples.lookup(&key);
  if (sample) {
    __sync_fetch_and_add(&sample->count, 1);
    return 0;
  }
  struct sample first = {.count = 1};
  bpf_get_current_comm(first.comm, sizeof(first.comm));
  if (cpu_samples.update(&key, &first)) lose(LOST_CPU_SAMPLES);
  return 0;
}
