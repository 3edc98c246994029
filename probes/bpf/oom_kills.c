// Processes that the kernel chose to kill for memory. mark_victim fires once for each, in whoever
// asked for the memory: the victim is the argument, before 6.8 its pid alone.

struct oom_kill {
  u64 at_ns;
  u64 cgroup_id;  // inode of its memory cgroup, 0 unknown
  u32 count;
  u32 unused;
};
BPF_HASH(oom_kills, u32, struct oom_kill, 4096);

// mark_victim (task, uid), or (pid)
int oom_victim(unsigned long long *ctx) {
  struct oom_kill kill = {.at_ns = bpf_ktime_get_ns(), .count = 1};
  u32 pid = 0;
#if OOM_TASK_ARG >= 0
  struct task_struct *task = (struct task_struct *)ctx[OOM_TASK_ARG];
  bpf_probe_read_kernel(&pid, sizeof(pid), &task->tgid);
#ifdef OOM_MEMORY_CONTROLLER
  struct css_set *set = 0;
  struct cgroup_subsys_state *state = 0;
  struct cgroup *group = 0;
  struct kernfs_node *node = 0;
  bpf_probe_read_kernel(&set, sizeof(set), &task->cgroups);
  if (set) bpf_probe_read_kernel(&state, sizeof(state), &set->subsys[OOM_MEMORY_CONTROLLER]);
  if (state) bpf_probe_read_kernel(&group, sizeof(group), &state->cgroup);
  if (group) bpf_probe_read_kernel(&node, sizeof(node), &group->kn);
  if (node) bpf_probe_read_kernel(&kill.cgroup_id, sizeof(kill.cgroup_id), &node->id);
#endif
#else
  // The number is a thread's: nearly always the first one of its process, which is asked first.
  pid = (u32)ctx[0];
  u64 current_pid = bpf_get_current_pid_tgid();
  if ((u32)current_pid == pid) pid = current_pid >> 32;
#endif
  struct oom_kill *known = oom_kills.lookup(&pid);
  if (known) {  // its number was used again before it was read
    known->count += 1;
    return 0;
  }
  if (oom_kills.update(&pid, &kill)) lose(LOST_OOM_KILLS);
  return 0;
}
