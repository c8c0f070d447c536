// GoogleTest's main with one flag of ours: --cpu_isa=LEVEL pins the process before anything runs.
// Exits with 77, which ctest shows as skipped, where the machine lacks the level.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "backends/cpu_isa.h"
#include "backends/error.h"

namespace {

constexpr int kSkipped = 77;
constexpr char kFlag[] = "--cpu_isa=";

// The flag's value, which it takes out of the arguments; "auto" where there is none.
std::string TakeFlag(int* argc, char** argv) {
  std::string value = "auto";
  int kept = 1;
  for (int i = 1; i < *argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind(kFlag, 0) == 0) {
      value = argument.substr(sizeof(kFlag) - 1);
    } else {
      argv[kept++] = argv[i];
    }
  }
  *argc = kept;
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = TakeFlag(&argc, argv);
  const auto isa = denoised::CpuIsaFromName(name);
  if (!isa) {
    std::fprintf(stderr, "unknown level '%s'\n", name.c_str());
    return 2;
  }
  if (*isa > denoised::BestCpuIsa(denoised::QueryMachine())) {
    std::printf("skipped: this machine has no %s\n", name.c_str());
    return kSkipped;
  }
  denoised::PinCpuIsa(*isa);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
