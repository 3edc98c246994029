# A 32-bit program that computes for ever, with frame pointers and without a library:
# as --32 turns_32.s -o turns.o && ld -m elf_i386 turns.o -o turns
  .globl _start
  .type _start, @function
_start:
  xor %ebp, %ebp
  call turns_outer
  .size _start, .-_start

  .type turns_outer, @function
turns_outer:
  push %ebp
  mov %esp, %ebp
1:
  call turns_inner
  jmp 1b
  .size turns_outer, .-turns_outer

  .type turns_inner, @function
turns_inner:
  push %ebp
  mov %esp, %ebp
  mov $1000000, %ecx
1:
  dec %ecx
  jnz 1b
  pop %ebp
  ret
  .size turns_inner, .-turns_inner
