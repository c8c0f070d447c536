// The colours of latents, fitted to the decoder that ships, against the videos that it decodes.
#include "runtime/pipelines/latent_colours.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "runtime/pipelines/pipeline.h"
#include "runtime/pipelines/tensor_convert.h"
#include "runtime/request_check.h"
#include "tests/runtime/drive.h"

namespace denoised {
namespace {

class LatentColoursTest : public testing::Test {
 protected:
  LatentColoursTest() : logger_(stderr, LogLevel::kError), pipeline_(Load()) {}

  std::unique_ptr<Pipeline> Load() {
    RepositoryOptions options;
    options.repository = DENOISED_SHAPES;
    options.device = "cpu";
    options.dtype = "float32";
    return std::move(LoadPipelines(options, &policy_, &observer_, &logger_).pipelines.front());
  }

  struct Made {
    HostTensor latents;
    DecodedVideo video;
  };
  Made Draw(const std::string& prompt, int64_t seed) {
    GenerationRequest request;
    request.prompt = prompt;
    request.seed = seed;
    request.num_inference_steps = 8;
    request.guidance_scale = 1;
    const auto parameters = ResolveRequest(request, pipeline_->info().defaults, pipeline_->rules());
    AttentionPlanner planner(pipeline_->planner_setting(), {}, &observer_);
    const auto run = pipeline_->NewRun({.prompt = prompt,
                                        .job_id = "job",
                                        .parameters = parameters,
                                        .latents = {},
                                        .planner = &planner,
                                        .observer = &observer_,
                                        .saved = ""});
    DriveTo(UnitKind::kDone, pipeline_.get(), run.get());
    return {run->Latents(), run->TakeVideo()};
  }

  SelectionPolicy policy_{std::nullopt};
  Observer observer_;
  Logger logger_;
  std::unique_ptr<Pipeline> pipeline_;
};

// [3, f, h, w] in [-1, 1], by the map.
at::Tensor Mapped(const LatentColours& colours, const HostTensor& latents) {
  const at::Tensor x = ToTensor(latents, "latents").squeeze(0);
  std::vector<at::Tensor> rgb;
  for (size_t k = 0; k < 3; ++k) {
    at::Tensor plane = at::full_like(x[0], colours.constant[k]);
    for (size_t c = 0; c < colours.of_channel.size(); ++c) {
      plane += x[static_cast<int64_t>(c)] * colours.of_channel[c][k];
    }
    rgb.push_back(plane.clamp(-1, 1));
  }
  return at::stack(rgb);
}

// The same positions of the video: of each latent frame the frame in its middle, means of squares.
at::Tensor Shrunk(const DecodedVideo& video, at::IntArrayRef like) {
  const VideoFrames& v = video.frames;
  const at::Tensor frames =
      at::from_blob(const_cast<uint8_t*>(v.rgb.data()), {v.frames, v.height, v.width, 3}, at::kByte)
          .to(at::kFloat)
          .permute({3, 0, 1, 2})
          .div(127.5) -
      1;
  std::vector<at::Tensor> shown;
  for (int64_t i = 0; i < like[1]; ++i) shown.push_back(frames.select(1, i == 0 ? 0 : 4 * i - 2));
  const int64_t side = v.height / like[2];
  return at::avg_pool2d(at::stack(shown, 1), {side, side});
}

double Correlation(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.flatten() - a.mean(), y = b.flatten() - b.mean();
  return (x.dot(y) / (x.norm() * y.norm())).item<double>();
}

TEST_F(LatentColoursTest, ResembleTheVideoThatTheLatentsBecome) {
  const auto start = std::chrono::steady_clock::now();
  const LatentColours& colours = pipeline_->Colours();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  ASSERT_EQ(colours.of_channel.size(), 8U);
  EXPECT_EQ(&pipeline_->Colours(), &colours) << "fitted once";
  int64_t seed = 0;
  for (const char* prompt : {"a red circle moving left", "a yellow triangle moving down"}) {
    const Made made = Draw(prompt, ++seed);
    const at::Tensor mapped = Mapped(colours, made.latents);
    const double right = Correlation(mapped, Shrunk(made.video, mapped.sizes()));
    std::printf("  %s: correlation %.3f, fitted in %.0f ms\n", prompt, right, 1e3 * taken.count());
    EXPECT_GT(right, 0.5);
    EXPECT_FALSE(EncodePreview(colours, made.latents, 256).empty());
  }
}

TEST_F(LatentColoursTest, AreTheSameInEveryProcess) {
  const LatentColours first = pipeline_->Colours();
  const auto other = Load();
  EXPECT_EQ(other->Colours().of_channel, first.of_channel);
  EXPECT_EQ(other->Colours().constant, first.constant);
}

}  // namespace
}  // namespace denoised
