# How a test becomes a guest. A test's Makefile sets ROOT, NAME and OBJS and
# includes this; the results are, as the Xen Test Framework calls them,
# BUILD/test-pvh64-NAME and BUILD/test-pvh64-NAME.cfg for xl.
#
# The same sources and compiler give the same bytes wherever they are built.

BUILD       ?= $(ROOT)/../../build/xtf
XEN_INCLUDE ?= /usr/include

override BUILD := $(abspath $(BUILD))
OUT   := $(BUILD)/obj/$(NAME)
GUEST := $(BUILD)/test-pvh64-$(NAME)

# Interrupts stay off, but an exception uses the stack: no red zone. Nobody
# saves FPU state: general registers only.
CFLAGS := -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-builtin \
          -mgeneral-regs-only -mno-red-zone -fno-pic -no-pie -mcmodel=small \
          -fno-stack-protector -fcf-protection=none -fno-strict-aliasing \
          -fno-asynchronous-unwind-tables -ffile-prefix-map=$(abspath $(ROOT))=. \
          -D__XEN_INTERFACE_VERSION__=0x00040d00 -I$(ROOT)/include -nostdinc -isystem $(shell $(CC) -print-file-name=include) \
          -isystem $(BUILD)/include
LDFLAGS := -nostdlib -static --build-id=none -z noexecstack -z max-page-size=4096 \
           --no-warn-rwx-segments -T $(ROOT)/link.lds

RUNTIME := entry.o traps.o lib.o platform.o event.o clock.o console.o xenstore.o \
           control.o test.o
ALL := $(addprefix $(OUT)/,$(RUNTIME) $(OBJS))

all: $(GUEST) $(GUEST).cfg

$(GUEST): $(ALL) $(ROOT)/link.lds
	$(LD) $(LDFLAGS) -o $@ $(ALL)

$(GUEST).cfg: $(ROOT)/pvh64.cfg.in extra.cfg.in
	@mkdir -p $(@D)
	sed 's|@NAME@|$(NAME)|; s|@KERNEL@|$(GUEST)|' $^ > $@

vpath %.c . $(ROOT)/common $(ROOT)/arch
vpath %.S $(ROOT)/arch

$(OUT)/%.o: %.c $(ROOT)/guest.mk | $(BUILD)/include/xen
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/%.o: %.S $(ROOT)/guest.mk | $(BUILD)/include/xen
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MMD -MP -c -o $@ $<

# Xen's public headers, and nothing else of the system's.
$(BUILD)/include/xen:
	@mkdir -p $(@D)
	ln -sfn $(abspath $(XEN_INCLUDE))/xen $@

-include $(ALL:.o=.d)

.PHONY: all
.DELETE_ON_ERROR:
