// Processes that the kernel chose to kill for memory. mark_victim fires once for each, in whoever
// asked for the memory: the victim is the argument, before 6.8 its number alone.

struct oom_kill {
  u64 at_ns;
  u64 cgroup_id;  // inode of its memory cgroup, 0 unknown
  u32 count;
  u32 pid;  // 0 for one that this pid namespace does not know
};
BPF_HASH(oom_kills, u32, struct oom_kill, 4096);  // by the kernel's own number

#if OOM_TASK_ARG >= 0
static __always_inline u64 memory_group_of(struct task_struct *task) {
  u64 id = 0;
#ifdef OOM_MEMORY_CONTROLLER
  struct css_set *set = 0;
  struct cgroup_subsys_state *state = 0;
  struct cgroup *group = 0;
  struct kernfs_node *node = 0;
  bpf_probe_read_kernel(&set, sizeof(set), &task->cgroups);
  if (set) bpf_probe_read_kernel(&state, sizeof(state), &set->subsys[OOM_MEMORY_CONTROLLER]);
  if (state) bpf_probe_read_kernel(&group, sizeof(group), &state->cgroup);
  if (group) bpf_probe_read_kernel(&node, sizeof(node), &group->kn);
  if (node) bpf_probe_read_kernel(&id, sizeof(id), &node->id);
#endif
  return id;
}
#endif

// mark_victim (task, uid), or (pid)
int oom_victim(unsigned long long *ctx) {
  struct oom_kill kill = {.at_ns = bpf_ktime_get_ns(), .count = 1};
  u32 number = 0;
#if OOM_TASK_ARG >= 0
  struct task_struct *task = (struct task_struct *)ctx[OOM_TASK_ARG];
  bpf_probe_read_kernel(&number, sizeof(number), &task->tgid);
  kill.cgroup_id = memory_group_of(task);
#if PID_NAMESPACED
  kill.pid = who_is(task).tgid;
#else
  kill.pid = number;
#endif
#else
  // The number is a thread's: nearly always the first one of its process, which is asked first.
  number = (u32)ctx[0];
  if ((u32)bpf_get_current_pid_tgid() == number) {
    kill.pid = current_who().tgid;
  } else {
    kill.pid = PID_NAMESPACED ? 0 : number;
  }
#endif
  struct oom_kill *known = oom_kills.lookup(&number);
  if (known) {  // its number was used again before it was read
    known->count += 1;
    return 0;
  }
  if (oom_kills.update(&number, &kill)) lose(LOST_OOM_KILLS);
  return 0;
}
