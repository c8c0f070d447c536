#include "backends/cpu_isa.h"

#include <ATen/Version.h>
#include <gmock/gmock.h>

#include "backends/error.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

// The machines that the scale was made for.
DeviceInfo Haswell() {
  DeviceInfo cpu;
  cpu.name = "Haswell";
  cpu.avx2 = true;
  return cpu;
}

DeviceInfo Skylake() {
  DeviceInfo cpu = Haswell();
  cpu.avx512 = true;
  return cpu;
}

DeviceInfo IceLake() {
  DeviceInfo cpu = Skylake();
  cpu.avx512_vnni = true;
  return cpu;
}

DeviceInfo Zen4() {
  DeviceInfo cpu = IceLake();
  cpu.avx512_bf16 = true;
  return cpu;
}

DeviceInfo SapphireRapids() {
  DeviceInfo cpu = Zen4();
  cpu.amx_bf16 = cpu.amx_int8 = true;
  return cpu;
}

TEST(CpuIsa, EveryNameIsALevelAndBack) {
  EXPECT_THAT(CpuIsaNames(), ::testing::ElementsAre("auto", "avx2", "avx512", "avx512_vnni",
                                                    "avx512_bf16", "amx"));
  for (const std::string& name : CpuIsaNames()) {
    EXPECT_EQ(CpuIsaName(CpuIsaFromName(name).value()), name);
  }
  EXPECT_FALSE(CpuIsaFromName(""));
  EXPECT_FALSE(CpuIsaFromName("AVX2"));
}

TEST(CpuIsa, TheBestOfAMachineIsTheHighestLevelThatItHasWhole) {
  EXPECT_EQ(BestCpuIsa(Haswell()), CpuIsa::kAvx2);
  EXPECT_EQ(BestCpuIsa(Skylake()), CpuIsa::kAvx512);
  EXPECT_EQ(BestCpuIsa(IceLake()), CpuIsa::kAvx512Vnni);
  EXPECT_EQ(BestCpuIsa(Zen4()), CpuIsa::kAvx512Bf16);
  EXPECT_EQ(BestCpuIsa(SapphireRapids()), CpuIsa::kAmx);
  DeviceInfo half_amx = SapphireRapids();
  half_amx.amx_int8 = false;
  EXPECT_EQ(BestCpuIsa(half_amx), CpuIsa::kAvx512Bf16);
  DeviceInfo bf16_alone = Skylake();
  bf16_alone.avx512_bf16 = true;
  EXPECT_EQ(BestCpuIsa(bf16_alone), CpuIsa::kAvx512);
}

// Sapphire Rapids in a virtual machine without AMX.
TEST(CpuIsa, TheFastestIsTheBestButWhereItsProductsOfBfloat16AreSlow) {
  for (DeviceInfo cpu : {Haswell(), Skylake(), IceLake(), Zen4(), SapphireRapids()}) {
    EXPECT_EQ(FastestCpuIsa(cpu), BestCpuIsa(cpu)) << cpu.name;
  }
  DeviceInfo slow = Zen4(), renamed_ice_lake = IceLake();
  slow.slow_bf16 = true;
  renamed_ice_lake.name = slow.name;
  EXPECT_EQ(BestCpuIsa(slow), CpuIsa::kAvx512Bf16);
  EXPECT_EQ(FastestCpuIsa(slow), CpuIsa::kAvx512Vnni);
  EXPECT_EQ(LimitCpu(slow, CpuIsa::kAvx512Bf16), slow);
  EXPECT_EQ(LimitCpu(slow, CpuIsa::kAvx512Vnni), renamed_ice_lake);
  EXPECT_EQ(LimitCpu(slow, CpuIsa::kAuto), renamed_ice_lake);
  slow = SapphireRapids();
  slow.slow_bf16 = true;
  EXPECT_EQ(FastestCpuIsa(slow), CpuIsa::kAmx);
}

TEST(CpuIsa, AMachineUnderAPinLooksLikeTheLesserOne) {
  const auto renamed = [](DeviceInfo cpu) {
    cpu.name = "Sapphire Rapids";
    return cpu;
  };
  const DeviceInfo machine = renamed(SapphireRapids());
  EXPECT_EQ(LimitCpu(machine, CpuIsa::kAvx2), renamed(Haswell()));
  EXPECT_EQ(LimitCpu(machine, CpuIsa::kAvx512), renamed(Skylake()));
  EXPECT_EQ(LimitCpu(machine, CpuIsa::kAvx512Vnni), renamed(IceLake()));
  EXPECT_EQ(LimitCpu(machine, CpuIsa::kAvx512Bf16), renamed(Zen4()));
  EXPECT_EQ(LimitCpu(machine, CpuIsa::kAmx), machine);
  EXPECT_EQ(LimitCpu(machine, CpuIsa::kAuto), machine);
}

TEST(CpuIsa, APinAddsNothingThatTheMachineLacks) {
  EXPECT_EQ(LimitCpu(Skylake(), CpuIsa::kAmx), Skylake());
  EXPECT_EQ(LimitCpu(Haswell(), CpuIsa::kAvx512Bf16), Haswell());
}

TEST(CpuIsa, QueryCpuIsTheMachineUnderThePin) {
  EXPECT_EQ(QueryCpu(), LimitCpu(QueryMachine(), CurrentCpuIsa()));
  EXPECT_EQ(BestCpuIsa(QueryCpu()), CurrentCpuIsa());
}

TEST(CpuIsa, AboveTheMachineIsRefusedNamingItsBest) {
  const CpuIsa best = BestCpuIsa(QueryMachine());
  if (best == CpuIsa::kAmx) GTEST_SKIP() << "this machine has every level";
  try {
    PinCpuIsa(CpuIsa::kAmx);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kInvalidArgument);
    EXPECT_EQ(error.field(), "cpu_isa");
    EXPECT_THAT(error.what(), HasSubstr("wanted amx"));
    EXPECT_THAT(error.what(), HasSubstr("at most " + std::string(CpuIsaName(best))));
  }
}

// This process is pinned already (pinned_main.cc).
TEST(CpuIsa, ASecondPinOfAnotherLevelIsRefused) {
  const CpuIsa best = BestCpuIsa(QueryMachine()), now = CurrentCpuIsa();
  if (best == CpuIsa::kAvx2) GTEST_SKIP() << "this machine has one level";
  EXPECT_NO_THROW(PinCpuIsa(now));
  try {
    PinCpuIsa(now == CpuIsa::kAvx2 ? best : CpuIsa::kAvx2);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_THAT(error.what(), HasSubstr(std::string(CpuIsaName(now)) + " is pinned already"));
  }
  EXPECT_EQ(CurrentCpuIsa(), now);
}

TEST(CpuIsa, TheIdentityNamesOurLevelAndTheLibraries) {
  const std::string identity = KernelIdentity();
  const CpuIsa level = CurrentCpuIsa();
  EXPECT_THAT(identity, HasSubstr("own=" + std::string(CpuIsaName(level)) + " libtorch=2."));
  EXPECT_THAT(identity, HasSubstr(level == CpuIsa::kAvx2 ? "/avx2 " : "/avx512 "));
  EXPECT_THAT(identity, HasSubstr(level == CpuIsa::kAvx2 ? "onednn=avx2 " : "onednn=avx512_core"));
  EXPECT_THAT(identity, HasSubstr(" mkl="));
}

TEST(CpuIsa, LibTorchRunsWhatIsAllowed) {
  EXPECT_EQ(at::get_cpu_capability(), CurrentCpuIsa() == CpuIsa::kAvx2 ? "AVX2" : "AVX512");
}

}  // namespace
}  // namespace denoised
