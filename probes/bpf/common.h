// What every program of an object shares: which processes, which network namespace, which ports.
// Kernel structs come before this text, generated from BTF (probes/kernel_tree.py); numbers that
// depend on the kernel come as -D. Contexts are plain words (unsigned long long *), so that bcc
// rewrites no dereference: every read of kernel memory below is explicit.

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

// One slot per kind of loss; probes/bpf_sources.py names them in the same order
enum loss { LOST_FAILURES, LOST_FAILURE_STACKS, LOST_CPU_SAMPLES, LOST_CPU_PAUSED, LOST_RESETS,
            LOST_DROPS, LOST_PORT_GROUPS, LOST_SYSCALL_MIX, LOST_RUNQ, LOST_SKB_ALLOCS, LOSS_KINDS };
BPF_PERCPU_ARRAY(losses, u64, LOSS_KINDS);

static __always_inline void lose(u32 kind) {
  u64 *count = losses.lookup(&kind);
  if (count) *count += 1;
}

static __always_inline u32 has_port(struct run_config *run, u16 port) {
  return (run->server_ports[(port >> 3) & 8191] >> (port & 7)) & 1;
}

static __always_inline u32 side_of_ports(struct run_config *run, u16 local, u16 remote) {
  if (has_port(run, local)) return SIDE_SERVER;
  if (has_port(run, remote)) return SIDE_CLIENT;
  return SIDE_OTHER;
}

static __always_inline u16 swap16(u16 value) { return (u16)(value << 8 | value >> 8); }
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define from_be16(value) swap16(value)
#else
#define from_be16(value) ((u16)(value))
#endif
