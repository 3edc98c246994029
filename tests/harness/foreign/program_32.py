"""program_32.py PROGRAM: writes a 32-bit server for x86 that needs neither compiler nor libc.

It listens on 127.0.0.1:9001. For ever it closes descriptor -1 (EBADF) and calls accept4, and at an
error of that sleeps 10 ms. It answers nobody. Assembled from (``as --32``, Intel syntax)::

    _start: mov eax, 359; mov ebx, 2; mov ecx, 1; xor edx, edx; int 0x80    # socket
            mov esi, eax
            mov eax, 361; mov ebx, esi; mov ecx, offset address; mov edx, 16; int 0x80   # bind
            mov eax, 363; mov ebx, esi; mov ecx, 128; int 0x80              # listen
    again:  mov eax, 6; mov ebx, -1; int 0x80                               # close
            mov eax, 364; mov ebx, esi; xor ecx, ecx; xor edx, edx          # accept4
            push esi; xor esi, esi; int 0x80; pop esi
            test eax, eax; jns again
            mov eax, 162; mov ebx, offset pause; xor ecx, ecx; int 0x80     # nanosleep
            jmp again
    address: .short 2; .byte 0x23, 0x29, 127, 0, 0, 1; .quad 0
    pause:  .long 0, 10000000
"""

import struct
import sys
from pathlib import Path

BASE = 0x08048000
HEADERS_BYTES = 52 + 32
CODE = bytes.fromhex(
    "b867010000bb02000000b90100000031d2cd8089c6b86901000089f3b9bb800408ba10000000cd80b86b010000"
    "89f3b980000000cd80b806000000bbffffffffcd80b86c01000089f331c931d25631f6cd805e85c079dfb8a200"
    "0000bbcb80040831c9cd80ebcf020023297f00000100000000000000000000000080969800"
)


def main():
    size = HEADERS_BYTES + len(CODE)
    # elf(5): Elf32_Ehdr of an executable for EM_386, then one PT_LOAD that may read and execute
    head = b"\x7fELF\x01\x01\x01" + bytes(9)
    start = BASE + HEADERS_BYTES
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, start, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    head += struct.pack("<IIIIIIII", 1, 0, BASE, BASE, size, size, 5, 0x1000)
    program = Path(sys.argv[1])
    program.write_bytes(head + CODE)
    program.chmod(0o755)


if __name__ == "__main__":
    main()
