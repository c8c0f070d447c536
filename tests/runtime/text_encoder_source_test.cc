// A text encoder whose weights were released reads them again from its files, if they are the same.
#include "runtime/pipelines/text_encoder_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "backends/error.h"
#include "runtime/attention/attention_planner.h"
#include "runtime/pipelines/device.h"
#include "tests/allocated.h"
#include "tests/peak_memory.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

constexpr char kWeights[] = "text_encoder/model.safetensors";

class TextEncoderSourceTest : public testing::Test {
 protected:
  TextEncoderSourceTest() {
    fs::copy(fs::path(DENOISED_SHAPES) / "text_encoder", root_ / "text_encoder");
    const ModelFolder folder(root_);
    encoder_ = Umt5Encoder::Load(folder.Sub("text_encoder"), at::kFloat, at::kCPU);
    source_ = std::make_unique<TextEncoderSource>(folder, folder.Seal());
  }

  at::Tensor Encode() {
    AttentionPlanner planner({&BackendRegistry::Default(), &policy_, QueryDevice(at::kCPU)}, {},
                             &observer_);
    ForwardContext context;
    context.attn_metadata = &planner.Prepare({encoder_->Spec(5)}, 0, 1);
    const ScopedForwardContext scope(context);
    const at::Tensor ids = at::arange(3, 8, at::kLong).unsqueeze(0);
    return encoder_->Forward(ids, at::ones_like(ids));
  }

  void Flip(int64_t from_end) {
    std::fstream file(root_ / kWeights, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-from_end, std::ios::end);
    const int byte = file.get();
    file.seekp(-from_end, std::ios::end);
    file.put(static_cast<char>(byte ^ 1));
  }

  Error Refusal() {
    try {
      source_->Reload(encoder_.get());
    } catch (const Error& error) {
      return error;
    }
    return Error(StatusCode::kOk, "accepted");
  }

  const TemporaryFolder folder_;
  const fs::path root_ = folder_.path();
  SelectionPolicy policy_{std::nullopt};
  Observer observer_;
  std::unique_ptr<Umt5Encoder> encoder_;
  std::unique_ptr<TextEncoderSource> source_;
};

TEST_F(TextEncoderSourceTest, TheSameFilesGiveTheSameBits) {
  const at::Tensor before = Encode();
  for (int turn = 0; turn < 2; ++turn) {
    encoder_->Release();
    EXPECT_FALSE(encoder_->loaded());
    EXPECT_THROW(Encode(), Error);
    source_->Reload(encoder_.get());
    EXPECT_TRUE(encoder_->loaded());
    EXPECT_TRUE(at::equal(Encode(), before));
  }
}

TEST_F(TextEncoderSourceTest, ReleasedWeightsAreNoMemory) {
  if (!PeakMemory::kMeasures) GTEST_SKIP() << "a sanitizer's memory is not the program's";
  const int64_t bytes = encoder_->WeightBytes(), with = AllocatedBytes();
  encoder_->Release();
  const int64_t freed = with - AllocatedBytes();
  EXPECT_GE(freed, bytes - bytes / 20);
  EXPECT_LE(freed, bytes + bytes / 4) << "rows are filled up to whole panels, no more";
  EXPECT_EQ(encoder_->WeightBytes(), bytes);
  source_->Reload(encoder_.get());
  EXPECT_NEAR(static_cast<double>(AllocatedBytes()), static_cast<double>(with),
              static_cast<double>(bytes) / 20);
}

TEST_F(TextEncoderSourceTest, AChangedFileIsRefusedByNameUntilItIsBack) {
  const at::Tensor before = Encode();
  encoder_->Release();
  Flip(5);
  const Error error = Refusal();
  EXPECT_EQ(error.code(), StatusCode::kDataLoss);
  EXPECT_EQ(error.reason(), "MODEL_CHANGED");
  EXPECT_THAT(error.what(), HasSubstr(kWeights));
  EXPECT_THAT(error.field(), HasSubstr(kWeights));
  EXPECT_FALSE(encoder_->loaded());
  Flip(5);
  source_->Reload(encoder_.get());
  EXPECT_TRUE(at::equal(Encode(), before));
}

TEST_F(TextEncoderSourceTest, AFileThatIsGoneOrCutIsRefusedByName) {
  encoder_->Release();
  const auto size = fs::file_size(root_ / kWeights);
  fs::copy_file(root_ / kWeights, root_ / "kept");
  fs::resize_file(root_ / kWeights, size - 100);
  EXPECT_THAT(Refusal().what(), HasSubstr(kWeights));
  fs::remove(root_ / kWeights);
  EXPECT_THAT(Refusal().what(), HasSubstr("text_encoder"));
  EXPECT_FALSE(encoder_->loaded());
  fs::rename(root_ / "kept", root_ / kWeights);
  source_->Reload(encoder_.get());
  EXPECT_TRUE(encoder_->loaded());
}

}  // namespace
}  // namespace denoised
