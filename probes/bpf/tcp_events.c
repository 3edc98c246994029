// TCP's own tracepoints. They fire in softirq as often as in a system call, so an event belongs to
// its socket (network namespace and ports), never to the process that happens to run.

struct tcp_counts {
  u64 transitions[4][16][16];  // side, old state, new state
  u64 retransmits[4][16];      // side, state
  struct {
    u64 count;
    u64 first_ns;
    u64 allocated_max_pages;
  } pressure[4][4];  // kind, side
};
BPF_TABLE("percpu_array", int, struct tcp_counts, tcp_counts, 1);

struct reset_key {
  u8 received;
  u8 side;
  u8 state;
  u8 reason;
};
struct reset_count {
  u64 count;
  u64 first_ns;
};
BPF_TABLE("percpu_hash", struct reset_key, struct reset_count, reset_counts, 1024);

struct drop_key {
  u64 location;
  u32 reason;
  u16 namespace_known;  // 0: neither socket nor device says whose packet it was
  u16 of_server;        // to or from a port of the server
};
BPF_TABLE("percpu_hash", struct drop_key, u64, drop_counts, 2048);

// Whether it is the run's network namespace. Its address is learned once: while this probe process
// is in it, it stays where it is, and comparing addresses saves a read at every event.
static __always_inline int is_runs_net(struct run_config *run, void *net) {
  if (!net) return 0;
  if (run->net) return run->net == (u64)net;
  u32 inum = 0;
  bpf_probe_read_kernel(&inum, sizeof(inum), &((struct net *)net)->inum);
  if (inum != run->netns_inum) return 0;
  run->net = (u64)net;
  return 1;
}

struct endpoint {
  u32 side;
  u32 state;
};

// Whether the socket is of the run; fills its side and state. Works for every kind of socket that
// begins with struct sock_common, TIME_WAIT and request sockets as well.
static __always_inline int of_run(struct run_config *run, void *sk, struct endpoint *end) {
  struct sock_common common = {};
  if (!sk || bpf_probe_read_kernel(&common, sizeof(common), sk)) return 0;
  if (!is_runs_net(run, common.net)) return 0;
  u16 local = common.skc_num;
  if (!local && common.skc_state != 6 && common.skc_state != 12) {
    // A socket that goes to TCP_CLOSE gives its port back (inet_put_port in tcp_set_state) before
    // the event; the port that its segments carried is still there. Not in TIME_WAIT and request
    // sockets, which are no inet_sock.
    bpf_probe_read_kernel(&local, sizeof(local), &((struct inet_sock *)sk)->inet_sport);
    local = from_be16(local);
  }
  end->side = side_of_ports(run, local, from_be16(common.skc_dport));
  end->state = common.skc_state & 15;
  return 1;
}

// inet_sock_set_state (sk, old, new)
int tcp_state_change(unsigned long long *ctx) {
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct tcp_counts *counts = tcp_counts.lookup(&zero);
  if (!run || !counts) return 0;
  struct endpoint end = {};
  struct sock *sk = (struct sock *)ctx[0];
  if (!of_run(run, sk, &end)) return 0;
  u16 protocol = 0;
  bpf_probe_read_kernel(&protocol, sizeof(sk->sk_protocol), &sk->sk_protocol);
  if (protocol != 6) return 0;
  counts->transitions[bounded(end.side, 3)][bounded(ctx[1], 15)][bounded(ctx[2], 15)] += 1;
  return 0;
}

// tcp_retransmit_skb (sk, ...)
int tcp_retransmit(unsigned long long *ctx) {
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct tcp_counts *counts = tcp_counts.lookup(&zero);
  if (!run || !counts) return 0;
  struct endpoint end = {};
  if (!of_run(run, (void *)ctx[0], &end)) return 0;
  counts->retransmits[bounded(end.side, 3)][bounded(end.state, 15)] += 1;
  return 0;
}

static __always_inline void press(struct run_config *run, struct tcp_counts *counts, void *sk,
                                  u32 kind, u64 allocated_pages) {
  struct endpoint end = {};
  if (!of_run(run, sk, &end)) return;
  u32 at = bounded(kind, 3), side = bounded(end.side, 3);
  if (!counts->pressure[at][side].count) counts->pressure[at][side].first_ns = bpf_ktime_get_ns();
  counts->pressure[at][side].count += 1;
  if (allocated_pages > counts->pressure[at][side].allocated_max_pages)
    counts->pressure[at][side].allocated_max_pages = allocated_pages;
}

// sock_exceed_buf_limit (sk, prot, allocated, kind): kind 0 is SK_MEM_SEND, 1 SK_MEM_RECV
int sock_over_limit(unsigned long long *ctx) {
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct tcp_counts *counts = tcp_counts.lookup(&zero);
  if (!run || !counts) return 0;
  press(run, counts, (void *)ctx[0], ctx[3] & 1, ctx[2]);
  return 0;
}

// sock_rcvqueue_full (sk, skb)
int sock_queue_full(unsigned long long *ctx) {
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct tcp_counts *counts = tcp_counts.lookup(&zero);
  if (!run || !counts) return 0;
  press(run, counts, (void *)ctx[0], 2, 0);
  return 0;
}

static __always_inline void count_reset(struct reset_key key) {
  struct reset_count *known = reset_counts.lookup(&key);
  if (known) {
    known->count += 1;
    return;
  }
  struct reset_count first = {.count = 1, .first_ns = bpf_ktime_get_ns()};
  if (reset_counts.update(&key, &first)) lose(LOST_RESETS);
}

// tcp_receive_reset (sk)
int tcp_reset_received(unsigned long long *ctx) {
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  struct endpoint end = {};
  if (!run || !of_run(run, (void *)ctx[0], &end)) return 0;
  struct reset_key key = {.received = 1, .side = end.side, .state = end.state};
  count_reset(key);
  return 0;
}

// tcp_send_reset (sk or NULL, skb or NULL[, reason]). Without a socket the skb is the segment that
// is answered: its destination port is the local one.
int tcp_reset_sent(unsigned long long *ctx) {
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  if (!run) return 0;
  struct endpoint end = {};
  struct reset_key key = {};
#if RESET_REASON_ARG >= 0
  key.reason = ctx[RESET_REASON_ARG] > 255 ? 255 : ctx[RESET_REASON_ARG];
#endif
  if (ctx[0]) {
    if (!of_run(run, (void *)ctx[0], &end)) return 0;
  } else {
    struct sk_buff *skb = (struct sk_buff *)ctx[1];
    void *dev = 0, *net = 0, *head = 0;
    u16 transport = 0, ports[2] = {};
    if (!skb) return 0;
    bpf_probe_read_kernel(&dev, sizeof(dev), &skb->dev);
    if (dev) bpf_probe_read_kernel(&net, sizeof(net), &((struct net_device *)dev)->net);
    if (!is_runs_net(run, net)) return 0;
    bpf_probe_read_kernel(&head, sizeof(head), &skb->head);
    bpf_probe_read_kernel(&transport, sizeof(transport), &skb->transport_header);
    if (bpf_probe_read_kernel(ports, sizeof(ports), head + transport)) return 0;
    end.side = side_of_ports(run, from_be16(ports[1]), from_be16(ports[0]));
  }
  key.side = end.side;
  key.state = end.state;
  count_reset(key);
  return 0;
}

// Whether a packet is a TCP segment to or from a port of the server, by its headers as far as they
// were found (ip_rcv sets the transport header before netfilter looks).
static __always_inline int is_of_server(struct run_config *run, struct sk_buff *skb) {
  void *head = 0;
  u16 network = 0, transport = 0, ports[2] = {};
  u8 version = 0, protocol = 0;
  bpf_probe_read_kernel(&head, sizeof(head), &skb->head);
  bpf_probe_read_kernel(&network, sizeof(network), &skb->network_header);
  bpf_probe_read_kernel(&transport, sizeof(transport), &skb->transport_header);
  if (!head || transport == 0xffff || transport <= network) return 0;
  bpf_probe_read_kernel(&version, sizeof(version), head + network);
  bpf_probe_read_kernel(&protocol, sizeof(protocol), head + network + (version >> 4 == 6 ? 6 : 9));
  if (protocol != 6) return 0;  // IPPROTO_TCP
  if (bpf_probe_read_kernel(ports, sizeof(ports), head + transport)) return 0;
  return side_of_ports(run, from_be16(ports[0]), from_be16(ports[1])) != SIDE_OTHER;
}

// kfree_skb (skb, location[, reason[, rx_sk]])
int skb_dropped(unsigned long long *ctx) {
  struct drop_key key = {.location = ctx[1]};
#if DROP_REASON_ARG >= 0
  u32 reason = (u32)ctx[DROP_REASON_ARG];
  if (reason <= DROP_REASON_CONSUMED || reason == DROP_REASON_NOT_SPECIFIED) return 0;
  key.reason = reason;
#endif
  int zero = 0;
  struct run_config *run = config.lookup(&zero);
  if (!run) return 0;
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  void *sk = 0, *net = 0, *dev = 0;
#if DROP_SOCKET_ARG >= 0
  sk = (void *)ctx[DROP_SOCKET_ARG];
#endif
  if (!sk) bpf_probe_read_kernel(&sk, sizeof(sk), &skb->sk);
  if (sk) {
    bpf_probe_read_kernel(&net, sizeof(net), &((struct sock_common *)sk)->net);
  } else {
    bpf_probe_read_kernel(&dev, sizeof(dev), &skb->dev);
    if (dev) bpf_probe_read_kernel(&net, sizeof(net), &((struct net_device *)dev)->net);
  }
  // TCP clears skb->dev early; before 6.11 there may be neither socket nor device: then it counts
  // apart, since it may be anybody's
  if (net && !is_runs_net(run, net)) return 0;
  key.namespace_known = net != 0;
  key.of_server = is_of_server(run, skb);
  u64 *count = drop_counts.lookup(&key);
  if (count) {
    *count += 1;
    return 0;
  }
  u64 one = 1;
  if (drop_counts.update(&key, &one)) lose(LOST_DROPS);
  return 0;
}
