"""How an eBPF program is compiled, kept, loaded, attached and read. Knows no probe."""
