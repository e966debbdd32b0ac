# The guest of the accelerator probe: what a kernel does in its first moments.
#
# It goes from real mode to long mode with paging, counts in a loop with locked and SSE
# instructions, takes a trap through the interrupt table, and reports through isa-debug-exit.
# The bytes of IMAGE in accelerator.rs are made from this file:
#
#   as probe.S -o probe.o && ld -Ttext=0xf0000 -e start -o probe.elf probe.o
#   objcopy -O binary -j .text probe.elf probe.raw && xxd -i < probe.raw
.globl start
.code16
start:
  cli
  xorw %ax,%ax
  movw %ax,%ds
  movw %ax,%ss
  movw $0x8000,%sp
  movl $0x2003,0x1000     # PML4[0] -> PDPT
  movl $0x3003,0x2000     # PDPT[0] -> PD
  movl $0x00000083,0x3000 # 2 MiB page at 0
  lgdtl %cs:gdtr-start
  movl $0x620,%eax   # PAE, OSFXSR, OSXMMEXCPT
  movl %eax,%cr4
  movl $0x1000,%eax
  movl %eax,%cr3
  movl $0xc0000080,%ecx
  rdmsr
  orl $0x100,%eax
  wrmsr
  movl $0x80000011,%eax
  movl %eax,%cr0
  ljmpl $8,$0xf0000+long-start
.code64
long:
  movl $100000,%ecx
1:
  incq %rbx
  lock addq %rbx,0x4000
  movq 0x4000,%xmm0
  paddq %xmm0,%xmm1
  decl %ecx
  jnz 1b
  xorl %eax,%eax
  cpuid
  # a trap through the IDT and back
  movl $trap-start+0xf0000,%eax
  movw %ax,0x5000+3*16
  movw $8,0x5000+3*16+2
  movw $0x8e00,0x5000+3*16+4
  shrl $16,%eax
  movw %ax,0x5000+3*16+6
  lidt idtr
  int3
  movb $0x10,%al
  outb %al,$0xf4
2: hlt
  jmp 2b
trap: iretq
.balign 8
gdt: .quad 0, 0x00209b0000000000, 0x0000930000000000
gdtr: .word 23
 .long 0xf0000+gdt-start
idtr: .word 0xfff
 .quad 0x5000
