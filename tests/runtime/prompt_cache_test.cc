// The cache of prompts: bounded, found by all that bits depend on; with a hit a job's latents and
// receipt are those without.
#include "runtime/pipelines/prompt_cache.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/attention/attention_planner.h"
#include "runtime/pipelines/pipeline.h"
#include "runtime/request_check.h"
#include "tests/runtime/drive.h"

namespace denoised {
namespace {

PromptCache::Key KeyOf(int64_t token) {
  return {{token, 2, 3}, 64, LinearNumerics::kPacked, AttnBackend::kFlashAttn};
}
PromptCache::Entry EntryOf(int64_t rows) { return {at::ones({1, rows, 256}), {}}; }

TEST(PromptCacheTest, ForgetsWhatWasNotAskedForTheLongest) {
  PromptCache cache(3 * 5500);  // of three entries of 4,096 bytes and what goes with them
  for (int64_t token : {1, 2, 3}) cache.Put(KeyOf(token), EntryOf(4));
  EXPECT_NE(cache.Find(KeyOf(1)), nullptr);
  cache.Put(KeyOf(4), EntryOf(4));
  EXPECT_EQ(cache.Find(KeyOf(2)), nullptr);
  for (int64_t token : {1, 3, 4}) EXPECT_NE(cache.Find(KeyOf(token)), nullptr) << token;
  EXPECT_GE(cache.bytes(), 3 * 4096);
  EXPECT_LE(cache.bytes(), 3 * 5500);
  cache.Put(KeyOf(5), EntryOf(100));  // too large for all of it
  EXPECT_EQ(cache.Find(KeyOf(5)), nullptr);
  EXPECT_NE(cache.Find(KeyOf(4)), nullptr);
}

TEST(PromptCacheTest, TellsApartWhateverChangesBits) {
  PromptCache cache(1 << 20);
  cache.Put(KeyOf(1), EntryOf(4));
  PromptCache::Key other = KeyOf(1);
  other.padded_length = 65;
  EXPECT_EQ(cache.Find(other), nullptr);
  other = KeyOf(1);
  other.linear = LinearNumerics::kExact;
  EXPECT_EQ(cache.Find(other), nullptr);
  other = KeyOf(1);
  other.attention = AttnBackend::kTorchSdpa;
  EXPECT_EQ(cache.Find(other), nullptr);
  other = KeyOf(1);
  other.ids.push_back(4);
  EXPECT_EQ(cache.Find(other), nullptr);
  EXPECT_NE(cache.Find(KeyOf(1)), nullptr);
}

struct CountsPrompts : Observer {
  void OnPrompt(const std::string& model, bool cached, int64_t cache_bytes) override {
    EXPECT_EQ(model, "shapes");
    ++(cached ? hits : misses);
    bytes = cache_bytes;
  }
  void OnAttention(AttnBackend, AttentionRole role, uint64_t calls,
                   std::optional<double>) override {
    if (role == AttentionRole::kTextEncoder) text_calls += calls;
  }
  int hits = 0, misses = 0;
  int64_t bytes = 0;
  uint64_t text_calls = 0;
};

TEST(PromptCacheTest, AJobWithAHitIsTheOneWithout) {
  SelectionPolicy policy{std::nullopt};
  CountsPrompts observer;
  Logger logger(stderr, LogLevel::kError);
  RepositoryOptions options;
  options.repository = DENOISED_SHAPES;
  options.device = "cpu";
  options.dtype = "float32";
  const LoadedRepository loaded = LoadPipelines(options, &policy, &observer, &logger);
  Pipeline& pipeline = *loaded.pipelines.front();
  const auto run = [&](const std::string& prompt, LinearNumerics linear) {
    GenerationRequest request;
    request.prompt = prompt;
    request.width = request.height = 64;
    request.num_frames = 1;
    request.num_inference_steps = 1;
    request.seed = 1;
    ResolvedParameters parameters =
        ResolveRequest(request, pipeline.info().defaults, pipeline.rules());
    parameters.linear = linear;
    AttentionPlanner planner(pipeline.planner_setting(), {}, &observer);
    const auto job = pipeline.NewRun(
        {prompt, "job", parameters, {}, &planner, &observer, 1, RunRequest::Decode::kNothing, ""});
    DriveTo(UnitKind::kDone, &pipeline, job.get());
    std::vector<std::tuple<AttentionRole, AttnBackend, uint64_t>> calls;
    for (const ReceiptEntry& entry : planner.Entries()) {
      calls.emplace_back(entry.role, entry.ran, entry.calls);
    }
    EXPECT_FALSE(calls.empty());
    return std::pair(job->Latents().data, calls);
  };
  const auto first = run("a red circle moving left", LinearNumerics::kPacked);
  const auto other = run("a blue square moving up", LinearNumerics::kPacked);
  EXPECT_NE(other.first, first.first);
  const uint64_t ran = observer.text_calls;
  EXPECT_EQ(run("a red circle moving left", LinearNumerics::kPacked), first);
  EXPECT_EQ(observer.text_calls, ran) << "counted where nothing ran";
  // With guidance: of three jobs two texts were new, and once the empty negative one.
  EXPECT_EQ(observer.misses, 3);
  EXPECT_EQ(observer.hits, 3);
  EXPECT_EQ(observer.bytes, pipeline.MadeBytes());
  const auto exact = run("a red circle moving left", LinearNumerics::kExact);
  EXPECT_NE(exact.first, first.first);
  EXPECT_EQ(run("a red circle moving left", LinearNumerics::kExact), exact);
}

}  // namespace
}  // namespace denoised
