// Fibers: a stack for each thread of a kernel and the switch between them.
#include <sys/mman.h>
#include <cstdio>
#include <cstdlib>
#include "machine.h"

#if defined(__x86_64__)
// Saves the callee-saved registers and the stack pointer of one fiber, restores those of another.
asm(R"(.text
.globl fastdl_emulator_switch
.hidden fastdl_emulator_switch
.type fastdl_emulator_switch,@function
fastdl_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastdl_emulator_switch,.-fastdl_emulator_switch
)");
constexpr int kSavedRegisters = 6;
#elif defined(__aarch64__)
asm(R"(.text
.globl fastdl_emulator_switch
.hidden fastdl_emulator_switch
.type fastdl_emulator_switch,%function
fastdl_emulator_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
)");
#else
#error "fiber.cpp: write the context switch of this processor"
#endif
extern "C" void fastdl_emulator_switch(void** save, void* load);

namespace fastdl::emulator {
namespace {

std::vector<char*>& free_stacks() {
  static thread_local std::vector<char*> stacks;
  return stacks;
}

char* take_stack() {
  std::vector<char*>& stacks = free_stacks();
  constexpr int kBatch = 64;
  constexpr size_t kGuard = 4096, kEach = kStackBytes + kGuard;
  if (stacks.empty()) {
    void* batch = mmap(nullptr, kEach * kBatch, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (batch == MAP_FAILED) {
      perror("emulator: no memory for stacks");
      abort();
    }
    for (int i = kBatch - 1; i >= 0; --i) {
      char* guard = static_cast<char*>(batch) + kEach * i;
      mprotect(guard, kGuard, PROT_NONE);  // an overflow faults instead of corrupting a neighbour
      stacks.push_back(guard + kGuard);
    }
  }
  char* stack = stacks.back();
  stacks.pop_back();
  ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);  // its last user may have been abandoned mid-function
  return stack;
}

void give_stack(Fiber* fiber) {
  free_stacks().push_back(fiber->stack);
  fiber->stack = nullptr;
}

void fiber_main();

void* initial_stack_pointer(char* stack, unsigned color) {
  // Staggered, so that the hot ends of a block's stacks do not share cache sets.
  const uintptr_t top = (uintptr_t(stack) + kStackBytes - 64 - color % 32 * 64) & ~uintptr_t(15);
  void** p = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  *--p = nullptr;
  *--p = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < kSavedRegisters; ++i) *--p = nullptr;
#else
  p -= 20;
  memset(p, 0, 160);
  p[1] = reinterpret_cast<void*>(fiber_main);
#endif
  return p;
}

void prepare(Fiber* fiber) {
  if (fiber->stack_pointer) return;
  fiber->stack = take_stack();
  fiber->stack_pointer = initial_stack_pointer(fiber->stack, fiber->linear);
}

// `from_stack`: where the fiber that is left keeps its ASan state; null when it will not come back.
void jump(void** save, void** from_stack, void* load, [[maybe_unused]] const void* stack,
          [[maybe_unused]] size_t bytes) {
#if FASTDL_ASAN
  __sanitizer_start_switch_fiber(from_stack, stack, bytes);
#endif
  fastdl_emulator_switch(save, load);
#if FASTDL_ASAN
  __sanitizer_finish_switch_fiber(from_stack ? *from_stack : nullptr, nullptr, nullptr);
#else
  (void)from_stack;
#endif
}

void fiber_main() {
#if FASTDL_ASAN
  const void* left = nullptr;
  size_t left_bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &left, &left_bytes);
  if (!group->root_stack) group->root_stack = left, group->root_stack_bytes = left_bytes;
#endif
  for (;;) {
    current->wait = Wait::kReady;
    group->entry(group->arguments);
    Fiber* done = current;
    on_exit(done);
    if (--group->live == 0) {
      give_stack(done);
      switch_to_root();
    }
    Fiber* next = pick();
    current = next;
    if (!next->stack_pointer) {  // a thread that has not begun continues on this stack, without a switch
      next->stack = done->stack;
      done->stack = nullptr;
      continue;
    }
    give_stack(done);
    void* abandoned;
    jump(&abandoned, nullptr, next->stack_pointer, next->stack, kStackBytes);
  }
}

}  // namespace

void switch_to(Fiber* next) {
  Fiber* self = current;
  current = next;
  prepare(next);
  jump(&self->stack_pointer, &self->asan_stack, next->stack_pointer, next->stack, kStackBytes);
}

void switch_to_root() {
  void* abandoned;
  jump(&abandoned, nullptr, group->root_stack_pointer, group->root_stack, group->root_stack_bytes);
}

void start(Fiber* first) {
  prepare(first);
  current = first;
  void* asan_root = nullptr;
  jump(&group->root_stack_pointer, &asan_root, first->stack_pointer, first->stack, kStackBytes);
  current = nullptr;
}

void release_stacks() {
  for (unsigned i = 0; i < group->fiber_count(); ++i) {
    if (group->fibers[i].stack) give_stack(&group->fibers[i]);
  }
}

}  // namespace fastdl::emulator
