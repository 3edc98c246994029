// What every program of an object shares: which processes, which network namespace, which ports.
// Kernel structs come before this text, generated from BTF (probes/bpf_loader/kernel_tree.py); numbers that
// depend on the kernel come as -D. Contexts are plain words (unsigned long long *), so that bcc
// rewrites no dereference: every read of kernel memory below is explicit. Nothing that decides
// whether a program is accepted is left to the compiler: see bounded().

#define SIDE_OTHER 0
#define SIDE_SERVER 1
#define SIDE_CLIENT 2

struct run_config {
  u32 netns_inum;  // nsfs inode of the run's network namespace
  u32 paused;      // the reader is clearing the CPU stacks
  u64 net;         // struct net of that inode, learned from the first socket of it
  u8 server_ports[8192];
};
BPF_ARRAY(config, struct run_config, 1);
BPF_HASH(watched_pids, u32, u8, 16384);

// One slot per kind of loss; probes/ebpf/sources.py names them in the same order
enum loss { LOST_FAILURES, LOST_FAILURE_STACKS, LOST_CPU_SAMPLES, LOST_CPU_PAUSED, LOST_RESETS,
            LOST_DROPS, LOST_PORT_GROUPS, LOST_SYSCALL_MIX, LOST_RUNQ, LOST_SKB_ALLOCS,
            LOST_OOM_KILLS, LOST_FATES, LOSS_KINDS };
BPF_PERCPU_ARRAY(losses, u64, LOSS_KINDS);

static __always_inline void lose(u32 kind) {
  u64 *count = losses.lookup(&kind);
  if (count) *count += 1;
}

// An index below mask + 1. The compiler drops a mask where it can prove the bound itself, and the
// verifier forgets what is known of a value that was byte-swapped or spilled: the compiler must not
// know where the value comes from.
#define bounded(value, mask)                \
  ({                                        \
    u64 unknown = (value);                  \
    asm volatile("" : "+r"(unknown));       \
    unknown & (mask);                       \
  })

static __always_inline u32 has_port(struct run_config *run, u16 port) {
  return (run->server_ports[bounded(port >> 3, 8191)] >> (port & 7)) & 1;
}

static __always_inline u32 side_of_ports(struct run_config *run, u16 local, u16 remote) {
  if (has_port(run, local)) return SIDE_SERVER;
  if (has_port(run, remote)) return SIDE_CLIENT;
  return SIDE_OTHER;
}

// Who a task is, by the numbers that this probe process knows; 0 for one that it does not know.
struct who {
  u32 tgid;
  u32 tid;
};

#if PID_NAMESPACED
// This probe process is not in the first pid namespace, so the kernel's own numbers are not those
// that it knows. A task has one in every namespace from the first to its own (struct pid): `level`
// says which of them is the one of `ns`.
struct own_namespace {
  u64 ns;
  u32 level;
  u32 unused;
};
BPF_ARRAY(own_namespace, struct own_namespace, 1);

struct number_of_task {
  u64 ns;
  u32 number;
};

static __always_inline struct number_of_task number_at(void *pid, u32 level) {
  struct number_of_task found = {};
  void *entry = pid + NUMBERS_AT + level * NUMBERS_SIZE;
  bpf_probe_read_kernel(&found.ns, sizeof(found.ns), entry + NUMBER_NAMESPACE_AT);
  bpf_probe_read_kernel(&found.number, sizeof(found.number), entry + NUMBER_AT);
  return found;
}

static __always_inline u32 own_number(struct own_namespace *own, struct task_struct *task) {
  void *pid = 0;
  u32 level = 0;
  bpf_probe_read_kernel(&pid, sizeof(pid), &task->thread_pid);
  if (!pid) return 0;
  bpf_probe_read_kernel(&level, sizeof(level), &((struct pid *)pid)->level);
  if (level < own->level) return 0;
  struct number_of_task found = number_at(pid, own->level);
  return found.ns == own->ns ? found.number : 0;
}

static __always_inline struct who who_is(struct task_struct *task) {
  int zero = 0;
  struct who who = {};
  struct own_namespace *own = own_namespace.lookup(&zero);
  if (!own || !own->ns) return who;
  void *leader = 0;
  bpf_probe_read_kernel(&leader, sizeof(leader), &task->group_leader);
  if (!leader) return who;
  who.tgid = own_number(own, (struct task_struct *)leader);
  if (who.tgid) who.tid = leader == task ? who.tgid : own_number(own, task);
  return who;
}

static __always_inline struct who current_who(void) {
  return who_is((struct task_struct *)bpf_get_current_task());
}

// Run once, in the probe process itself (BPF_PROG_TEST_RUN): it is in the namespace by definition.
int learn_pid_namespace(unsigned long long *ctx) {
  int zero = 0;
  struct own_namespace *own = own_namespace.lookup(&zero);
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  void *pid = 0;
  u32 level = 0;
  bpf_probe_read_kernel(&pid, sizeof(pid), &task->thread_pid);
  if (!own || !pid) return 0;
  bpf_probe_read_kernel(&level, sizeof(level), &((struct pid *)pid)->level);
  own->level = level;
  own->ns = number_at(pid, level).ns;
  return 0;
}
#else
static __always_inline struct who current_who(void) {
  u64 id = bpf_get_current_pid_tgid();
  struct who who = {.tgid = id >> 32, .tid = (u32)id};
  return who;
}
#endif

static __always_inline u16 swap16(u16 value) { return (u16)(value << 8 | value >> 8); }
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define from_be16(value) swap16(value)
#else
#define from_be16(value) ((u16)(value))
#endif
