"""From addresses to names: kernel, ELF, Go, debug files, maps of runtimes."""
