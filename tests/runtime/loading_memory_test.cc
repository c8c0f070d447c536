// What loading takes beside the weights.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <memory>

#include "runtime/threads.h"
#include "tests/peak_memory.h"
#include "tests/runtime/random_transformer.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

TEST(LoadingMemory, IsLessThanATensorAboveWhatIsKept) {
  if (!PeakMemory::kMeasures) GTEST_SKIP() << "a sanitizer's memory is not the program's";
  constexpr int64_t kMiB = 1 << 20;
  KeepFreedMemory();  // as the programs do
  const TemporaryFolder folder;
  const RandomShape shape{
      .heads = 8, .head_size = 64, .ffn = 8192, .layers = 3, .text = 64, .projection = false};
  WriteRandomTransformer(folder.path(), shape, 7);
  const int64_t file = static_cast<int64_t>(
      std::filesystem::file_size(folder.path() / "diffusion_pytorch_model.safetensors"));
  ASSERT_GT(file, 90 * kMiB);
  const PeakMemory peak;
  const auto model = WanTransformer::Load(ModelFolder(folder.path()), at::kFloat, at::kCPU,
                                          LinearNumerics::kPacked);
  EXPECT_LE(peak.Bytes() - file, 12 * kMiB);  // the largest tensors take 16
}

}  // namespace
}  // namespace denoised
