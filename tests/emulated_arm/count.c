// SPDX-License-Identifier: MIT
// A plugin for QEMU's user mode on ARM: counts instructions from one system call 9999 of the program to the next, whose
// first argument says whether to print the counts, in millions.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

// As QEMU declares them; Debian does not ship the header.
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated)(uint64_t id, struct qemu_plugin_tb*);
typedef void (*called)(uint64_t id, unsigned cpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                       uint64_t, uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated);
void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, called);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
const void* qemu_plugin_insn_data(const struct qemu_plugin_insn*);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn*, int add, void* counter, uint64_t amount);

int qemu_plugin_version = 1;

static uint64_t instructions, multiplications;

// fmla of vectors, by a lane or by a vector.
static int multiplies(uint32_t code) { return (code & 0xBF80F400) == 0x0F801000 || (code & 0xBFA0FC00) == 0x0E20CC00; }

static void on_translation(uint64_t id, struct qemu_plugin_tb* block) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    struct qemu_plugin_insn* instruction = qemu_plugin_tb_get_insn(block, i);
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &instructions, 1);
    if (multiplies(*(const uint32_t*)qemu_plugin_insn_data(instruction)))
      qemu_plugin_register_vcpu_insn_exec_inline(instruction, 0, &multiplications, 1);
  }
}

static void on_system_call(uint64_t id, unsigned cpu, int64_t number, uint64_t prints, uint64_t b, uint64_t c,
                           uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number != 9999) return;
  if (prints) printf("%.2f %.2f\n", instructions / 1e6, multiplications / 1e6), fflush(stdout);
  instructions = multiplications = 0;
}

int qemu_plugin_install(uint64_t id, const void* machine, int count, char** arguments) {
  (void)machine, (void)count, (void)arguments;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
  qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
  return 0;
}
