// What the race checker says: the access, the one before it, and where both are in the source.
#include <dlfcn.h>
#include <cstdio>
#include "race.h"

namespace fastdl::emulator {

uintptr_t library_base() {
  static const uintptr_t base = [] {
    Dl_info info;
    return dladdr(reinterpret_cast<void*>(&library_base), &info) ? uintptr_t(info.dli_fbase) : 0;
  }();
  return base;
}

std::string source_line(uint32_t program_counter) {
  Dl_info info;
  if (!program_counter) return "an emulated instruction";
  if (!dladdr(reinterpret_cast<void*>(&library_base), &info)) return "?";
  char command[600], line[600] = "?";
  snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%x 2>/dev/null", info.dli_fname,
           program_counter - 1);
  if (FILE* pipe = popen(command, "r")) {
    // From the innermost function out: load() and store() pass an access on, their caller is the place.
    while (fgets(line, sizeof line, pipe) && strstr(line, "/vector.cuh:")) continue;
    pclose(pipe);
  }
  std::string text = line;
  text.resize(std::min({text.size(), text.find('\n'), text.find(" (discriminator")}));
  const size_t slash = text.rfind('/');
  return slash == std::string::npos ? text : text.substr(slash + 1);
}

namespace {

std::string describe(const Access& access) {
  std::string who = "thread " + std::to_string(access.thread);
  if (access.run != state.run) who += " of another block";
  if (access.run == state.run && access.thread >= state.thread_count) who = "an asynchronous copy";
  return who + " (" + source_line(access.program_counter) + ")";
}

std::string describe_memory(const unsigned char* pointer) {
  char text[160];
  for (unsigned i = 0; i < group->block_count; ++i) {
    const Block& block = group->blocks[i];
    const uintptr_t offset = uintptr_t(pointer) - uintptr_t(block.window);
    if (offset >= kWindowBytes) continue;
    const char* name = "dynamic shared memory";
    for (const SharedVariable& variable : block.variables) {
      if (offset - variable.offset < variable.bytes) name = variable.name;
    }
    snprintf(text, sizeof text, "%s (shared+0x%zx)", name, size_t(offset));
    return text;
  }
  snprintf(text, sizeof text, "global memory %p", static_cast<const void*>(pointer));
  return text;
}

}  // namespace

void report(const char* kind, const unsigned char* pointer, const Access* earlier, bool earlier_write,
            const Access& now, bool write, Site site) {
  state.on = false;
  std::string text = std::string(kind) + ": " + (write ? "write to " : "read of ") + describe_memory(pointer);
  text += " at " + (site.file ? std::string(site.file) + ":" + std::to_string(site.line)
                              : source_line(now.program_counter));
  if (earlier)
    text += std::string(", not ordered after the ") + (earlier_write ? "write" : "read") + " by " +
            describe(*earlier);
  fail_text(text);
}

}  // namespace fastdl::emulator
