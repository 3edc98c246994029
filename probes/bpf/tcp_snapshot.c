// iter/tcp: visits every TCP socket of the reader's network namespace and adds it up here, so that
// what leaves the kernel does not grow with the number of connections. Only listeners are records.

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
};
BPF_ARRAY(snapshot_sums, struct snapshot_sums, 1);

struct port_group {
  u32 source;
  u32 destination;
  u32 port;
};
BPF_HASH(port_groups, struct port_group, u64, 65536);

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

int bpf_iter__tcp(struct bpf_iter__tcp *ctx) {
  struct sock_common *common = ctx->sk_common;
  if (!common) return 0;
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct snapshot_sums *sums = snapshot_sums.lookup(&zero);
  if (!run || !sums) return 0;

  u16 local = common->skc_num, remote = from_be16(common->skc_dport);
  u32 state = common->skc_state & 15, family = common->skc_family;
  u32 side = side_of_ports(run, local, remote) & 3;
  struct state_sums *sum = &sums->by[side][state];
  sum->sockets += 1;

  if (side == SIDE_CLIENT && family == 2) {
    struct port_group key = {
        .source = common->skc_rcv_saddr, .destination = common->skc_daddr, .port = remote};
    u64 *count = port_groups.lookup(&key);
    if (count) {
      *count += 1;
    } else {
      u64 one = 1;
      if (port_groups.update(&key, &one)) lose(LOST_PORT_GROUPS);
    }
  }

  // NULL for TIME_WAIT and request sockets: what follows struct sock_common is another struct
  struct sock *sk = (struct sock *)bpf_skc_to_tcp_sock(common);
  if (!sk) return 0;
  if (state == 10) {
    struct listener_record record = {.family = family, .port = local};
    record.queue = sk->sk_ack_backlog;
    record.backlog = sk->sk_max_ack_backlog;
    record.syn_queue = ((struct inet_connection_sock *)sk)->syn_queue;
    record.drops = sk->sk_drops;
    record.address[0] = common->skc_rcv_saddr;
#ifdef HAVE_IPV6
    if (family == 10)
      bpf_probe_read_kernel(record.address, sizeof(record.address), &common->skc_v6_rcv_saddr);
#endif
    void *socket = sk->sk_socket;
    if (socket)
      bpf_probe_read_kernel(&record.inode, sizeof(((struct socket_alloc *)0)->i_ino),
                            &((struct socket_alloc *)socket)->i_ino);
    struct bpf_iter_meta *meta = ctx->meta;
    bpf_seq_write(meta->seq, &record, sizeof(record));
  }
  s64 rmem = sk->rmem_alloc, queued = sk->sk_wmem_queued;
  sum->full_sockets += 1;
  sum->rmem_alloc += rmem;
  sum->wmem_alloc += (s64)sk->wmem_alloc - 1;  // the socket itself holds one
  sum->wmem_queued += queued;
  sum->forward_alloc += sk->sk_forward_alloc;
  sum->sndbuf += sk->sk_sndbuf;
  sum->rcvbuf += sk->sk_rcvbuf;
  if (rmem > sum->rmem_alloc_max) sum->rmem_alloc_max = rmem;
  if (queued > sum->wmem_queued_max) sum->wmem_queued_max = queued;
  if (state == 1) {
    struct tcp_sock *tcp = (struct tcp_sock *)sk;
    sum->data_segs_out += tcp->data_segs_out;
    sum->bytes_sent += tcp->bytes_sent;
    sum->data_segs_in += tcp->data_segs_in;
    sum->bytes_received += tcp->bytes_received;
  }
  return 0;
}
