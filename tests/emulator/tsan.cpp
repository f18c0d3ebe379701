// The entry points that g++ -fsanitize=thread calls, in place of ThreadSanitizer's library.
#include <cstddef>

namespace fastdl::emulator {
void plain_access(const void* pointer, size_t bytes, bool write, const void* return_address);
}

#define FASTDL_ENTRY(name, bytes, write) \
  void name(void* p) { fastdl::emulator::plain_access(p, bytes, write, __builtin_return_address(0)); }
#define FASTDL_ENTRIES(bytes)                              \
  FASTDL_ENTRY(__tsan_read##bytes, bytes, false)           \
  FASTDL_ENTRY(__tsan_write##bytes, bytes, true)           \
  FASTDL_ENTRY(__tsan_unaligned_read##bytes, bytes, false) \
  FASTDL_ENTRY(__tsan_unaligned_write##bytes, bytes, true)
// Host code and the emulator's own headers use these; kernels go through the emulator's atomics.
#define FASTDL_ATOMICS(bits, T)                                                                           \
  T __tsan_atomic##bits##_load(const volatile T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); } \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int) {                                             \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                   \
  }                                                                                                       \
  T __tsan_atomic##bits##_fetch_add(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                                    \
  }                                                                                                       \
  T __tsan_atomic##bits##_fetch_sub(volatile T* p, T v, int) {                                            \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                                    \
  }                                                                                                       \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* c, T v, int, int) {                 \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);               \
  }                                                                                                       \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* c, T v, int, int) {                   \
    return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);               \
  }                                                                                                       \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T c, T v, int, int) {                       \
    __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                     \
    return c;                                                                                             \
  }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_atomic_thread_fence(int) {}
FASTDL_ENTRIES(1)
FASTDL_ENTRIES(2)
FASTDL_ENTRIES(4)
FASTDL_ENTRIES(8)
FASTDL_ENTRIES(16)
void __tsan_read_range(void* p, size_t bytes) {
  fastdl::emulator::plain_access(p, bytes, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t bytes) {
  fastdl::emulator::plain_access(p, bytes, true, __builtin_return_address(0));
}
FASTDL_ATOMICS(8, unsigned char)
FASTDL_ATOMICS(16, unsigned short)
FASTDL_ATOMICS(32, unsigned)
FASTDL_ATOMICS(64, unsigned long)
}
