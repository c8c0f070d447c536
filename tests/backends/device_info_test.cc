#include <gtest/gtest.h>

#include "backends/cpu_isa.h"
#include "backends/error.h"

namespace denoised {
namespace {

TEST(DeviceInfo, TheCpuHasANameAndWiderSetsImplyNarrowerOnes) {
  const DeviceInfo cpu = QueryCpu();
  EXPECT_EQ(cpu.type, DeviceInfo::Type::kCpu);
  EXPECT_FALSE(cpu.name.empty());
  EXPECT_TRUE(cpu.avx2) << "the whole build needs AVX2";
  EXPECT_TRUE(!cpu.avx512_bf16 || cpu.avx512);
  EXPECT_TRUE(!cpu.avx512_vnni || cpu.avx512);
}

TEST(DeviceInfo, AgreesWithTheCompilersOwnLook) {
  const DeviceInfo cpu = QueryCpu();
  EXPECT_EQ(cpu.avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(cpu.avx512_vnni, cpu.avx512 && __builtin_cpu_supports("avx512vnni"));
  const DeviceInfo machine = QueryMachine();
  EXPECT_EQ(machine.slow_bf16,
            machine.avx512_bf16 && __builtin_cpu_is("intel") && !__builtin_cpu_is("cooperlake"));
}

TEST(DeviceInfo, ACudaDeviceThatIsNotThereIsRefusedByName) {
  try {
    QueryCuda(1000);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(error.field(), "device");
  }
}

}  // namespace
}  // namespace denoised
