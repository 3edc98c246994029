// iter/tcp: visits every TCP socket of the reader's network namespace and adds it up here, so that
// what leaves the kernel does not grow with the number of connections. Only listeners are records.
//
// A load through a typed pointer is the cheapest way to a field, and the kernel refuses it when the
// compiler makes it wider than the field. So each is volatile: neither joined nor split. A kernel
// that refuses even these gets READ_BY_HELPER, which costs half as much again and no kernel can
// refuse: there each field comes through bpf_probe_read_kernel.

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
  u64 visited;  // since read(2) returned
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

#if READ_BY_HELPER
#define read_field(to, from) bpf_probe_read_kernel(&(to), sizeof(to), &(from))
#define as_full_socket(common) ((void *)(common))
#else
#define read_field(to, from) (to) = *(volatile __typeof__(to) *)&(from)
#define as_full_socket(common) bpf_skc_to_tcp_sock(common)
#endif

int bpf_iter__tcp(struct bpf_iter__tcp *ctx) {
  struct sock_common *common = ctx->sk_common;
  if (!common) return 0;
  struct bpf_iter_meta *meta = ctx->meta;
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct snapshot_sums *sums = snapshot_sums.lookup(&zero);
  if (!run || !sums) return 0;
  sums->visited += 1;
  if (sums->visited >= BREATH_SOCKETS) {
    struct listener_record breath = {};
    sums->visited = 0;
    bpf_seq_write(meta->seq, &breath, sizeof(breath));
  }

  u16 local = 0, remote = 0, family = 0;
  u8 state = 0;
  read_field(local, common->skc_num);
  read_field(remote, common->skc_dport);
  read_field(family, common->skc_family);
  read_field(state, common->skc_state);
  remote = from_be16(remote);
  u32 side = side_of_ports(run, local, remote);
  struct state_sums *sum = &sums->by[bounded(side, 3)][bounded(state, 15)];
  sum->sockets += 1;

  if (side == SIDE_CLIENT && family == 2) {
    struct port_group key = {.port = remote};
    read_field(key.source, common->skc_rcv_saddr);
    read_field(key.destination, common->skc_daddr);
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
  struct sock *sk = as_full_socket(common);
  if (!sk) return 0;
  if (state == 10) {
    struct listener_record record = {.family = family, .port = local};
    read_field(record.queue, sk->sk_ack_backlog);
    read_field(record.backlog, sk->sk_max_ack_backlog);
    read_field(record.syn_queue, ((struct inet_connection_sock *)sk)->syn_queue);
    read_field(record.drops, sk->sk_drops);
    read_field(record.address[0], common->skc_rcv_saddr);
#ifdef HAVE_IPV6
    if (family == 10)
      bpf_probe_read_kernel(record.address, sizeof(record.address), &common->skc_v6_rcv_saddr);
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
    struct tcp_sock *tcp = (struct tcp_sock *)sk;
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
