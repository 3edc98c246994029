# A program that computes for ever, with frame pointers and without a library:
# as turns_64.s -o turns.o && ld -static -pie --no-dynamic-linker turns.o -o turns
  .globl _start
  .type _start, @function
_start:
  xor %rbp, %rbp
  call turns_outer
  .size _start, .-_start

  .type turns_outer, @function
turns_outer:
  push %rbp
  mov %rsp, %rbp
1:
  call turns_inner
  jmp 1b
  .size turns_outer, .-turns_outer

  .type turns_inner, @function
turns_inner:
  push %rbp
  mov %rsp, %rbp
  mov $1000000, %ecx
1:
  dec %ecx
  jnz 1b
  pop %rbp
  ret
  .size turns_inner, .-turns_inner
