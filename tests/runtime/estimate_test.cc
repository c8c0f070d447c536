// Estimates against the measured peak of real runs of the model that ships: never under by more
// than a twentieth, and over by no more than what would refuse in vain.
#include "runtime/pipelines/estimate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "runtime/attention/attention_planner.h"
#include "runtime/media/artifacts.h"
#include "runtime/pipelines/pipeline.h"
#include "runtime/request_check.h"
#include "runtime/threads.h"
#include "tests/peak_memory.h"
#include "tests/runtime/drive.h"

namespace denoised {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

struct Shape {
  int64_t width, height, frames;
  std::string dtype = "float32";
  AttnBackend backend = AttnBackend::kFlashAttn;
  std::vector<ArtifactFormat> formats = {ArtifactFormat::kSafetensors};
  double guidance = 1;
  LinearNumerics linear = LinearNumerics::kPacked;
};

class Loaded {
 public:
  explicit Loaded(const std::string& dtype, const std::string& keep_text_encoder = "auto")
      : logger_(stderr, LogLevel::kError) {
    KeepFreedMemory();  // as the programs do
    RepositoryOptions options;
    options.repository = DENOISED_SHAPES;
    options.device = "cpu";
    options.dtype = dtype;
    options.keep_text_encoder = keep_text_encoder;
    pipeline_ = std::move(LoadPipelines(options, &policy_, &observer_, &logger_).pipelines.front());
  }

  struct Work {
    GenerationRequest request;
    ResolvedParameters parameters;
  };
  Work WorkOf(const Shape& shape) const {
    Work work;
    work.request.prompt = "a red circle moving left";
    work.request.width = shape.width;
    work.request.height = shape.height;
    work.request.num_frames = shape.frames;
    work.request.num_inference_steps = 1;
    work.request.guidance_scale = shape.guidance;
    work.request.max_sequence_length = 64;
    work.request.formats = shape.formats;
    work.request.attention.backend = shape.backend;
    work.request.numerics.linear = shape.linear;
    work.parameters = ResolveRequest(work.request, pipeline_->info().defaults, pipeline_->rules());
    return work;
  }

  WorkEstimate Estimate(const Work& work,
                        int64_t available = std::numeric_limits<int64_t>::max()) const {
    const PlannerSetting& setting = pipeline_->planner_setting();
    return pipeline_->EstimateRun(work.request, work.parameters, available,
                                  CostNow(setting, {work.request.attention}));
  }

  DecodedVideo Run(const Work& work, int64_t decode_bands = 1, bool release_text_encoder = false) {
    AttentionPlanner planner(pipeline_->planner_setting(), {work.request.attention}, &observer_);
    const auto wants = [&](ArtifactFormat format) { return Wants(work.request.formats, format); };
    using Decode = RunRequest::Decode;
    const Decode decode = wants(ArtifactFormat::kSafetensors) ? Decode::kNothing
                          : wants(ArtifactFormat::kNpy)       ? Decode::kFramesAndValues
                                                              : Decode::kFrames;
    const auto run = pipeline_->NewRun({work.request.prompt,
                                        "job",
                                        work.parameters,
                                        {},
                                        &planner,
                                        &observer_,
                                        decode_bands,
                                        decode,
                                        "",
                                        release_text_encoder});
    DriveTo(UnitKind::kDone, pipeline_.get(), run.get());
    const DecodedVideo video = run->TakeVideo();
    std::vector<std::string> files;
    for (ArtifactFormat format : work.request.formats) {
      files.push_back(EncodeArtifact(format, video, run->Latents()));
    }
    return video;
  }

  int64_t MadeBytes() const { return pipeline_->MadeBytes(); }

 private:
  SelectionPolicy policy_{std::nullopt};
  Observer observer_;
  Logger logger_;
  std::unique_ptr<Pipeline> pipeline_;
};

class Estimates : public testing::TestWithParam<Shape> {};

TEST_P(Estimates, CoverThePeakOfARealRun) {
  if (!PeakMemory::kMeasures) GTEST_SKIP() << "a sanitizer's memory is not the program's";
  Loaded loaded(GetParam().dtype);
  const auto work = loaded.WorkOf(GetParam());
  const int64_t told = loaded.Estimate(work).peak_bytes;
  PeakMemory peak;
  loaded.Run(work);
  const int64_t taken = peak.Bytes();
  std::printf("  %lldx%lld, %lld frames: told %.0f MiB, taken %.0f MiB\n",
              static_cast<long long>(GetParam().width), static_cast<long long>(GetParam().height),
              static_cast<long long>(GetParam().frames), static_cast<double>(told) / kMiB,
              static_cast<double>(taken) / kMiB);
  EXPECT_LE(taken, told + told / 20);
  EXPECT_LE(told, 2 * taken + 96 * kMiB) << "far too much is refused in vain";
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, Estimates,
    testing::Values(Shape{64, 64, 17}, Shape{192, 192, 33}, Shape{512, 512, 5},
                    Shape{192, 192, 33, "bfloat16"},
                    Shape{256, 256, 9, "float32", AttnBackend::kReference},
                    Shape{192, 192, 33, "float32", AttnBackend::kVideoSparseAttn},
                    Shape{256, 256, 5, "float32", AttnBackend::kVmobaAttn},
                    Shape{64, 64, 33, "float32", AttnBackend::kFlashAttn, {ArtifactFormat::kMp4}},
                    Shape{512, 512, 5, "float32", AttnBackend::kSlaAttn, {ArtifactFormat::kMp4}},
                    Shape{384, 384, 17, "float32", AttnBackend::kSlaAttn, {ArtifactFormat::kNpy}},
                    Shape{384,
                          256,
                          9,
                          "float32",
                          AttnBackend::kSlaAttn,
                          {ArtifactFormat::kGif, ArtifactFormat::kPng},
                          4},
                    Shape{.width = 512, .height = 512, .frames = 5, .guidance = 4},
                    Shape{
                        .width = 512, .height = 512, .frames = 5, .linear = LinearNumerics::kExact},
                    Shape{.width = 512,
                          .height = 512,
                          .frames = 9,
                          .guidance = 4,
                          .linear = LinearNumerics::kExact}),
    [](const auto& info) { return "Case" + std::to_string(info.index); });

TEST(Estimates, CountAFormOfTheWeightsThatIsNotKeptUntilItIsThere) {
  Loaded loaded("float32");
  const auto of = [&](LinearNumerics linear) {
    Loaded::Work work = loaded.WorkOf({64, 64, 5});
    work.request.numerics.linear = work.parameters.linear = linear;
    return work;
  };
  const auto told = [&](LinearNumerics linear) { return loaded.Estimate(of(linear)).peak_bytes; };
  const int64_t packed = told(LinearNumerics::kPacked), first = told(LinearNumerics::kInt8);
  EXPECT_GT(told(LinearNumerics::kExact), packed);
  EXPECT_GT(first, told(LinearNumerics::kExact) + kMiB);
  EXPECT_EQ(loaded.MadeBytes(), 0);
  loaded.Run(of(LinearNumerics::kInt8));
  // What is there by now counts for every job, so that no job's own estimate has it.
  const int64_t made = loaded.MadeBytes();
  EXPECT_GT(made, kMiB);
  EXPECT_LE(told(LinearNumerics::kInt8), first - made * 9 / 10);
  EXPECT_EQ(told(LinearNumerics::kPacked), packed);
  loaded.Run(of(LinearNumerics::kInt8));
  EXPECT_EQ(loaded.MadeBytes(), made);
}

TEST(Estimates, ADecodeTakesTheBandsThatMemoryAsksForAndGivesTheSameVideo) {
  if (!PeakMemory::kMeasures) GTEST_SKIP() << "a sanitizer's memory is not the program's";
  Loaded loaded("float32");
  const auto work =
      loaded.WorkOf({512, 512, 1, "float32", AttnBackend::kFlashAttn, {ArtifactFormat::kPng}});
  const WorkEstimate whole = loaded.Estimate(work);
  EXPECT_EQ(whole.decode_bands, 1);
  const int64_t available = whole.peak_bytes - whole.peak_bytes / 8;
  const WorkEstimate spare = loaded.Estimate(work, available);
  EXPECT_GT(spare.decode_bands, 1);
  EXPECT_LE(spare.peak_bytes, available);
  DecodedVideo banded;
  {
    PeakMemory peak;
    banded = loaded.Run(work, spare.decode_bands);
    EXPECT_LE(peak.Bytes(), spare.peak_bytes + spare.peak_bytes / 20);
  }
  EXPECT_EQ(banded.frames.rgb, loaded.Run(work).frames.rgb);
}

// Of the shipped model's text encoder: 1.4 MB in its file.
constexpr int64_t kEncoderBytes = 1400000;

TEST(Estimates, ATextEncoderIsReleasedWhereNoDecodeFitsBesideIt) {
  Loaded loaded("float32");
  const auto large = loaded.WorkOf({256, 256, 33});
  const WorkEstimate kept = loaded.Estimate(large);
  EXPECT_FALSE(kept.releases_text_encoder);
  EXPECT_FALSE(loaded.Estimate(large, kept.peak_bytes).releases_text_encoder);
  const WorkEstimate released = loaded.Estimate(large, kept.peak_bytes - 1);
  EXPECT_TRUE(released.releases_text_encoder);
  EXPECT_LE(released.peak_bytes, kept.peak_bytes - kEncoderBytes * 9 / 10);
  EXPECT_GE(released.peak_bytes, kept.peak_bytes - 3 * kEncoderBytes / 2);
  loaded.Run(loaded.WorkOf({64, 64, 1}), 1, /*release_text_encoder=*/true);
  // What is not there is not counted, and comes back with the next prompt.
  EXPECT_LT(loaded.MadeBytes(), -kEncoderBytes * 8 / 10);
  const WorkEstimate again = loaded.Estimate(large);
  EXPECT_FALSE(again.releases_text_encoder);
  EXPECT_GE(again.peak_bytes, kept.peak_bytes + kEncoderBytes * 9 / 10);
}

TEST(Estimates, TheTextEncoderStaysOrGoesAsItsOwnerWishes) {
  Loaded always("float32", "always"), never("float32", "never");
  const auto work = always.WorkOf({64, 64, 1});
  EXPECT_FALSE(always.Estimate(work, 0).releases_text_encoder);
  EXPECT_TRUE(never.Estimate(work).releases_text_encoder);
  EXPECT_EQ(never.MadeBytes(), 0);
  never.Run(work, 1, /*release_text_encoder=*/true);
  EXPECT_LT(never.MadeBytes(), kEncoderBytes / 10) << "only the prompt's embeddings";
}

TEST(Estimates, AJobWhoseTextEncoderWasReleasedIsTheOneWhereItWasKept) {
  Loaded loaded("float32");
  const auto work =
      loaded.WorkOf({64, 64, 1, "float32", AttnBackend::kFlashAttn, {ArtifactFormat::kPng}});
  const auto kept = Loaded("float32").Run(work).frames.rgb;
  auto other = work;
  other.request.prompt = "a green star";
  loaded.Run(other, 1, /*release_text_encoder=*/true);
  EXPECT_EQ(loaded.Run(work).frames.rgb, kept) << "with the weights read again";
  EXPECT_GT(loaded.MadeBytes(), 0);
}

TEST(Estimates, OfAVideoThatNoSmallMachineHoldsAreLarge) {
  Loaded loaded("float32");
  const WorkEstimate estimate = loaded.Estimate(loaded.WorkOf({512, 512, 401}));
  EXPECT_GT(estimate.peak_bytes, 3 * 1024 * kMiB);
  EXPECT_LT(estimate.peak_bytes, 16 * 1024 * kMiB);
}

}  // namespace
}  // namespace denoised
