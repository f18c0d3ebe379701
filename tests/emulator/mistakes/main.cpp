// usage: mistakes CASE MISTAKE (case "all": every one): prints nothing and returns 0 when the case passes;
// else the diagnosis, and 1.
#include <cstdio>
#include "harness.h"

namespace fastdl::mistakes {
int seeded = 0;
std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
}  // namespace fastdl::mistakes

int main(int count, char** arguments) {
  using namespace fastdl::mistakes;
  if (count > 2) seeded = atoi(arguments[2]);
  bool found = false;
  for (const Case& c : cases()) {
    if (count > 1 && strcmp(c.name, arguments[1]) && strcmp("all", arguments[1])) continue;
    found = true;
    try {
      c.run();
    } catch (const std::exception& error) {
      printf("%s: %s\n", c.name, error.what());
      return 1;
    }
  }
  if (!found) printf("no such case\n");
  return found ? 0 : 2;
}
