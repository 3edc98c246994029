// iter/tcp: visits every TCP socket of the reader's network namespace and adds it up here, so that
// what leaves the kernel does not grow with the number of connections. Only listeners are records.
// Every field comes through bpf_probe_read_kernel: a load through a typed pointer is accepted or
// refused by the width and order that the compiler chose for it.

struct state_sums {
  u64 sockets;
  u64 full_sockets;
  s64 rmem_alloc;
  s64 wmem_alloc;
  s64 wmem_queued;
  s64 forward_alloc;
  s64 sndbuf;
  s64 rcvbuf;
  s64 rmem_alloc_max;
  s64 wmem_queued_max;
  u64 data_segs_out;
  u64 bytes_sent;
  u64 data_segs_in;
  u64 bytes_received;
};
struct snapshot_sums {
  struct state_sums by[4][16];  // side, state
  u64 visited;
};
BPF_ARRAY(snapshot_sums, struct snapshot_sums, 1);

struct port_group {
  u32 source;
  u32 destination;
  u32 port;
};
BPF_HASH(port_groups, struct port_group, u64, 65536);

// Family 0 is no listener: read(2) returns with it, so that a process that waits gets the core.
struct listener_record {
  u64 inode;
  u32 address[4];
  u32 family;
  u32 port;
  u32 queue;
  u32 backlog;
  u32 syn_queue;
  u32 drops;
};

#define read_field(to, from) bpf_probe_read_kernel(&(to), sizeof(to), &(from))

int bpf_iter__tcp(struct bpf_iter__tcp *ctx) {
  void *visited = ctx->sk_common;
  if (!visited) return 0;
  struct bpf_iter_meta *meta = ctx->meta;
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct snapshot_sums *sums = snapshot_sums.lookup(&zero);
  if (!run || !sums) return 0;
  sums->visited += 1;
  if (sums->visited % BREATH_SOCKETS == 0) {
    struct listener_record breath = {};
    bpf_seq_write(meta->seq, &breath, sizeof(breath));
  }

  struct sock_common common = {};
  if (bpf_probe_read_kernel(&common, sizeof(common), visited)) return 0;
  u16 local = common.skc_num, remote = from_be16(common.skc_dport);
  u32 side = side_of_ports(run, local, remote), state = common.skc_state;
  struct state_sums *sum = &sums->by[bounded(side, 3)][bounded(state, 15)];
  sum->sockets += 1;

  if (side == SIDE_CLIENT && common.skc_family == 2) {
    struct port_group key = {
        .source = common.skc_rcv_saddr, .destination = common.skc_daddr, .port = remote};
    u64 *count = port_groups.lookup(&key);
    if (count) {
      *count += 1;
    } else {
      u64 one = 1;
      if (port_groups.update(&key, &one)) lose(LOST_PORT_GROUPS);
    }
  }

  // what follows struct sock_common in TIME_WAIT and request sockets is another struct
  if (state == 6 || state == 12) return 0;
  struct sock *sk = visited;
  if (state == 10) {
    struct listener_record record = {.family = common.skc_family, .port = local};
    read_field(record.queue, sk->sk_ack_backlog);
    read_field(record.backlog, sk->sk_max_ack_backlog);
    read_field(record.syn_queue, ((struct inet_connection_sock *)visited)->syn_queue);
    read_field(record.drops, sk->sk_drops);
    record.address[0] = common.skc_rcv_saddr;
#ifdef HAVE_IPV6
    if (common.skc_family == 10) {
      void *address = ((struct sock_common *)visited)->skc_v6_rcv_saddr;
      bpf_probe_read_kernel(record.address, sizeof(record.address), address);
    }
#endif
    void *socket = 0;
    read_field(socket, sk->sk_socket);
    if (socket)
      bpf_probe_read_kernel(&record.inode, sizeof(((struct socket_alloc *)0)->i_ino),
                            &((struct socket_alloc *)socket)->i_ino);
    bpf_seq_write(meta->seq, &record, sizeof(record));
  }
  s32 rmem = 0, wmem = 0, queued = 0, forward = 0, sndbuf = 0, rcvbuf = 0;
  read_field(rmem, sk->rmem_alloc);
  read_field(wmem, sk->wmem_alloc);
  read_field(queued, sk->sk_wmem_queued);
  read_field(forward, sk->sk_forward_alloc);
  read_field(sndbuf, sk->sk_sndbuf);
  read_field(rcvbuf, sk->sk_rcvbuf);
  sum->full_sockets += 1;
  sum->rmem_alloc += rmem;
  sum->wmem_alloc += (s64)wmem - 1;  // the socket itself holds one
  sum->wmem_queued += queued;
  sum->forward_alloc += forward;
  sum->sndbuf += sndbuf;
  sum->rcvbuf += rcvbuf;
  if (rmem > sum->rmem_alloc_max) sum->rmem_alloc_max = rmem;
  if (queued > sum->wmem_queued_max) sum->wmem_queued_max = queued;
  if (state == 1) {
    struct tcp_sock *tcp = visited;
    u32 segs_out = 0, segs_in = 0;
    u64 sent = 0, received = 0;
    read_field(segs_out, tcp->data_segs_out);
    read_field(sent, tcp->bytes_sent);
    read_field(segs_in, tcp->data_segs_in);
    read_field(received, tcp->bytes_received);
    sum->data_segs_out += segs_out;
    sum->bytes_sent += sent;
    sum->data_segs_in += segs_in;
    sum->bytes_received += received;
  }
  return 0;
}
