// What has not run on a device is refused with that reason, and served where it is admitted.
#include "backends/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/attention_backend.h"
#include "backends/cuda/flash3.h"
#include "backends/registry.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;

DeviceInfo Hopper() {
  DeviceInfo device;
  device.type = DeviceInfo::Type::kCuda;
  device.major = 9;
  device.name = "H100";
  return device;
}

AttentionSpec VideoSpec() {
  AttentionSpec spec;
  spec.num_heads = 2;
  spec.head_size = 128;
  spec.dtype = DType::kBFloat16;
  spec.grid = {4, 8, 8};
  spec.q_len = spec.kv_len = 256;
  spec.supported = AllAttnBackends();
  return spec;
}

constexpr AttnBackend kOwnCudaKernel[] = {
    AttnBackend::kVideoSparseAttn, AttnBackend::kSlidingTileAttn, AttnBackend::kVmobaAttn,
    AttnBackend::kSlaAttn,         AttnBackend::kBsaAttn,         AttnBackend::kNablaAttn,
    AttnBackend::kSageAttn,        AttnBackend::kSageSlaAttn,     AttnBackend::kCudnnAttn};

bool BuiltWithCuda() {
  return BackendRegistry::Default().Find(AttnBackend::kCudnnAttn)->backend != nullptr;
}

std::string Refusal(const BackendRegistry& registry, AttnBackend id, const AttentionSpec& spec,
                    const DeviceInfo& device = Hopper()) {
  return registry.WhyNot(id, spec, device).value_or("");
}

TEST(Admission, TheRefusalSaysWhatIsMissingAndWhichFlagAdmits) {
  EXPECT_EQ(RefuseUnmeasured(Admission::kMeasured, "its kernel"),
            "its kernel has not run on a device yet; --admit_unmeasured admits it");
  EXPECT_EQ(RefuseUnmeasured(Admission::kUnmeasured, "its kernel"), std::nullopt);
}

TEST(Admission, BothRegistriesHoldTheSameTable) {
  const auto& measured = BackendRegistry::Default().entries();
  const auto& all = BackendRegistry::WithUnmeasured().entries();
  ASSERT_EQ(measured.size(), all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(measured[i].id, all[i].id);
    EXPECT_EQ(measured[i].automatic, all[i].automatic);
    EXPECT_EQ(measured[i].absent_reason, all[i].absent_reason);
  }
}

TEST(Admission, CudaKernelsAreRefusedByDefaultOnDevicesWhereTheyHaveNotRun) {
  if (!BuiltWithCuda()) GTEST_SKIP() << "this build has no CUDA kernels";
  DeviceInfo ampere = Hopper();
  ampere.major = 8;
  for (AttnBackend id : kOwnCudaKernel) {
    SCOPED_TRACE(AttnBackendName(id));
    EXPECT_EQ(Refusal(BackendRegistry::Default(), id, VideoSpec()), "");
    EXPECT_THAT(Refusal(BackendRegistry::Default(), id, VideoSpec(), ampere),
                HasSubstr("8.x has not run on a device yet; --admit_unmeasured admits it"));
    EXPECT_EQ(Refusal(BackendRegistry::WithUnmeasured(), id, VideoSpec(), ampere), "");
  }
}

TEST(Admission, CudnnYieldsToFlashAttention3WhereThatServes) {
  if (!BuiltWithCuda()) GTEST_SKIP() << "this build has no CUDA kernels";
  const AttentionBackend& cudnn =
      *BackendRegistry::Default().Find(AttnBackend::kCudnnAttn)->backend;
  AttentionSpec spec = VideoSpec();
  EXPECT_EQ(cudnn.Yields(spec, Hopper()).has_value(), Flash3Loads());
  spec.supported = {AttnBackend::kCudnnAttn};
  EXPECT_EQ(cudnn.Yields(spec, Hopper()), std::nullopt) << "nobody else is listed";
  spec = VideoSpec();
  spec.head_size = 64;
  EXPECT_EQ(cudnn.Yields(spec, Hopper()), std::nullopt) << "FA3 does not serve it";
}

TEST(Admission, ABuildWithoutCudaSaysSoWhateverIsAdmitted) {
  if (BuiltWithCuda()) GTEST_SKIP() << "this build has CUDA kernels";
  for (AttnBackend id : kOwnCudaKernel) {
    EXPECT_THAT(Refusal(BackendRegistry::WithUnmeasured(), id, VideoSpec()),
                HasSubstr("not in this build"))
        << AttnBackendName(id);
  }
}

TEST(Admission, AnAdmittedCudaKernelStillNamesItsLimits) {
  if (!BuiltWithCuda()) GTEST_SKIP() << "this build has no CUDA kernels";
  const BackendRegistry& registry = BackendRegistry::WithUnmeasured();
  AttentionSpec spec = VideoSpec();
  spec.head_size = 256;
  EXPECT_THAT(Refusal(registry, AttnBackend::kSlaAttn, spec), HasSubstr("up to 128; got 256"));
  spec = VideoSpec();
  spec.causal = true;
  EXPECT_THAT(Refusal(registry, AttnBackend::kSlaAttn, spec), HasSubstr("not causal"));
  DeviceInfo blackwell = Hopper();
  blackwell.major = 10;
  EXPECT_THAT(Refusal(registry, AttnBackend::kSlaAttn, VideoSpec(), blackwell),
              HasSubstr("compute capability 8.x and 9.0; H100 has 10.0"));
  spec = VideoSpec();
  spec.head_size = 12;
  EXPECT_THAT(Refusal(registry, AttnBackend::kCudnnAttn, spec), HasSubstr("multiples of 8"));
  spec.dtype = DType::kFloat32;
  EXPECT_THAT(Refusal(registry, AttnBackend::kCudnnAttn, spec), HasSubstr("bfloat16 and float16"));
  EXPECT_THAT(Refusal(registry, AttnBackend::kCudnnAttn, VideoSpec(), QueryCpu()),
              HasSubstr("CUDA devices only"));
}

TEST(Admission, FlashAttention3OpensWithoutPythonAndWithoutADevice) {
  if (!Flash3Installed()) GTEST_SKIP() << "this build was told of no fa3_fwd library";
  EXPECT_TRUE(Flash3Loads());
}

TEST(Admission, TheInt8CudaKernelNamesItsLimits) {
  if (!BuiltWithCuda()) GTEST_SKIP() << "this build has no CUDA kernels";
  for (AttnBackend id : {AttnBackend::kSageAttn, AttnBackend::kSageSlaAttn}) {
    AttentionSpec spec = VideoSpec();
    spec.dtype = DType::kFloat16;
    EXPECT_EQ(Refusal(BackendRegistry::WithUnmeasured(), id, spec), "");
    spec.dtype = DType::kFloat32;
    EXPECT_THAT(Refusal(BackendRegistry::WithUnmeasured(), id, spec),
                HasSubstr("takes bfloat16 and float16; got float32"));
    spec = VideoSpec();
    spec.head_size = 160;
    EXPECT_THAT(Refusal(BackendRegistry::WithUnmeasured(), id, spec),
                HasSubstr("head sizes up to 128; got 160"));
    spec = VideoSpec();
    spec.has_mask = true;
    EXPECT_THAT(Refusal(BackendRegistry::WithUnmeasured(), id, spec), HasSubstr("takes no mask"));
  }
}

TEST(Admission, Fp4IsWrittenForTheCpu) {
  for (AttnBackend id : {AttnBackend::kSageAttnThree, AttnBackend::kAttnQatInfer}) {
    EXPECT_NE(Refusal(BackendRegistry::WithUnmeasured(), id, VideoSpec()), "");
  }
}

TEST(Admission, FlashAttentionOnCudaIsCausalForEqualLengthsOnly) {
  AttentionSpec spec = VideoSpec();
  spec.causal = true;
  EXPECT_EQ(Refusal(BackendRegistry::Default(), AttnBackend::kFlashAttn, spec), "");
  spec.kv_len = 100;
  EXPECT_THAT(Refusal(BackendRegistry::Default(), AttnBackend::kFlashAttn, spec),
              HasSubstr("got 256 and 100"));
}

TEST(Admission, TheCpuServesTheSameEitherWay) {
  for (AttnBackend id : {AttnBackend::kFlashAttn, AttnBackend::kVideoSparseAttn}) {
    EXPECT_EQ(Refusal(BackendRegistry::Default(), id, VideoSpec(), QueryCpu()), "");
    EXPECT_EQ(Refusal(BackendRegistry::WithUnmeasured(), id, VideoSpec(), QueryCpu()), "");
  }
}

}  // namespace
}  // namespace denoised
