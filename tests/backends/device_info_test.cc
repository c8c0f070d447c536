#include <gtest/gtest.h>

#include "backends/attention_spec.h"
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
