/*
 * PVH entry: from the 32-bit state that docs/misc/pvh.pandoc promises to
 * 64-bit long mode on page tables of our own, which map the first 4 GiB one to
 * one. The stack, the tables and the exception stubs are here too.
 */

#include <xen/elfnote.h>

#define CR0_PE_NE_WP_PG  0x80010021
#define CR4_PAE          0x20
#define MSR_EFER         0xc0000080
#define EFER_LME         0x100

#define TABLE  0x23     /* present, writable, accessed */
#define LARGE  0xe3     /* the same, dirty, 2 MiB */

#define CODE_SEL  0x08
#define DATA_SEL  0x10

.macro ELFNOTE type, desc:vararg
        .pushsection .note.Xen, "a", @note
        .balign 4
        .long   4
        .long   9f - 8f
        .long   \type
        .asciz  "Xen"
8:      \desc
9:      .balign 4
        .popsection
.endm

        ELFNOTE XEN_ELFNOTE_GUEST_OS, .asciz "xlft test"
        ELFNOTE XEN_ELFNOTE_XEN_VERSION, .asciz "xen-3.0"
        ELFNOTE XEN_ELFNOTE_SUSPEND_CANCEL, .long 1
        ELFNOTE XEN_ELFNOTE_PHYS32_ENTRY, .long start32

        .section .text.entry, "ax", @progbits
        .code32
        .globl  start32
start32:
        cld
        mov     %ebx, %esi              /* hvm_start_info */
        lgdt    gdt_ptr
        mov     $stack_top, %esp

        mov     $CR4_PAE, %eax
        mov     %eax, %cr4
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $MSR_EFER, %ecx
        rdmsr
        or      $EFER_LME, %eax
        wrmsr
        mov     $CR0_PE_NE_WP_PG, %eax
        mov     %eax, %cr0
        ljmp    $CODE_SEL, $start64

        .code64
start64:
        mov     $DATA_SEL, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        xor     %eax, %eax
        mov     %eax, %fs
        mov     %eax, %gs
        xor     %ebp, %ebp
        mov     %esi, %edi
        call    start_c
        ud2

/*
 * Exceptions. Those that push no error code push 0, so that the frame is
 * always a struct exception.
 */
.macro STUB nr, has_code
        .balign 16
        .if \has_code == 0
        push    $0
        .endif
        push    $\nr
        jmp     exception
.endm

        .text
        .balign 16
        .globl  exception_stubs
exception_stubs:
        .set    vec, 0
        .rept   32
        .if     vec == 8 || (vec >= 10 && vec <= 14) || vec == 17 || vec == 21 || vec == 29 || vec == 30
        STUB    vec, 1
        .else
        STUB    vec, 0
        .endif
        .set    vec, vec + 1
        .endr

exception:
        mov     %rsp, %rdi
        and     $-16, %rsp
        call    do_exception
        ud2

        .section .rodata
        .balign 8
gdt:
        .quad   0
        .quad   0x00af9b000000ffff      /* 64-bit code */
        .quad   0x00cf93000000ffff      /* data */
gdt_ptr:
        .word   . - gdt - 1
        .long   gdt

        .data
        .balign 4096
pml4:   .quad   pdpt + TABLE
        .fill   511, 8, 0
pdpt:   .quad   pd + TABLE, pd + 0x1000 + TABLE, pd + 0x2000 + TABLE, pd + 0x3000 + TABLE
        .fill   508, 8, 0
pd:
        .set    frame, 0
        .rept   4 * 512
        .quad   (frame << 21) + LARGE
        .set    frame, frame + 1
        .endr

        .bss
        .balign 4096
        .globl  hypercall_page
hypercall_page:
        .skip   4096
        .skip   16384
stack_top:

        .section .note.GNU-stack, "", @progbits
