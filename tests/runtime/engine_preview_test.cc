// Pictures of jobs on their way: which steps have one, what they cost others, what they leave
// alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/stop_point.h"
#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

constexpr std::chrono::milliseconds kPace(250);

// An engine whose model has colours.
struct Pictured : FakeEngine {
  Pictured() {
    model.colours.of_channel = {{0.01F, 0, 0}};
    model.colours.constant = {0, 0.5F, 0};
  }
  std::string SubmitShown(const std::string& prompt, int64_t steps, int64_t every = 1) {
    return Submit(prompt, [&](GenerationRequest& r) {
      r.num_inference_steps = steps;
      r.preview = {every, 64};
    });
  }
  // The steps whose pictures were to be seen, in order.
  std::vector<int64_t> StepsShown(const std::string& id) const {
    std::vector<int64_t> steps;
    for (const JobSnapshot& job : store->History(id)) {
      if (!job.preview || (!steps.empty() && steps.back() == job.preview->step)) continue;
      steps.push_back(job.preview->step);
    }
    return steps;
  }
  bool AwaitShown(const std::string& id, int64_t step) {
    return Await(id,
                 [&](const JobSnapshot& job) { return job.preview && job.preview->step == step; });
  }
};

TEST(EnginePreview, IsAPngOfTheLatestStepForJobsThatAskAlone) {
  Pictured fake;
  const JobSnapshot shown = fake.AwaitEnd(fake.SubmitShown("shown", 3));
  ASSERT_TRUE(shown.preview);
  EXPECT_EQ(shown.preview->step, 3);
  EXPECT_THAT(shown.preview->png, StartsWith("\x89PNG\r\n"));
  const std::string plain = fake.Submit("plain");
  fake.AwaitEnd(plain);
  EXPECT_THAT(fake.StepsShown(plain), IsEmpty());
}

TEST(EnginePreview, AreOfEveryNthStepAndTheLast) {
  Pictured fake;
  fake.model.steps.Close();
  const std::string id = fake.SubmitShown("shown", 8, 3);
  for (int64_t step = 1; step <= 7; ++step) {
    fake.model.steps.Allow(1);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(step + 1));
    if (step % 3 == 0) {
      ASSERT_TRUE(fake.AwaitShown(id, step)) << step;
    }
    fake.clock.Advance(kPace);
  }
  fake.model.steps.Open();
  fake.AwaitEnd(id);
  EXPECT_THAT(fake.StepsShown(id), ElementsAre(3, 6, 8));
}

TEST(EnginePreview, AreFourASecondAtMostAndTheLastWhateverCameBefore) {
  Pictured fake;
  fake.model.steps.Close();
  const std::string id = fake.SubmitShown("shown", 6);
  const auto pass = [&](int64_t step) {
    fake.model.steps.Allow(1);
    return fake.model.steps.AwaitArrival(step + 1);
  };
  ASSERT_TRUE(pass(1) && fake.AwaitShown(id, 1));
  fake.clock.Advance(kPace - std::chrono::milliseconds(1));
  ASSERT_TRUE(pass(2) && pass(3));
  fake.clock.Advance(std::chrono::milliseconds(1));
  ASSERT_TRUE(pass(4) && fake.AwaitShown(id, 4));
  fake.model.steps.Open();
  fake.AwaitEnd(id);
  EXPECT_THAT(fake.StepsShown(id), ElementsAre(1, 4, 6));
}

TEST(EnginePreview, AThreadThatIsBehindIsNotWaitedFor) {
  Pictured fake;
  Gate behind(/*open=*/false);
  std::atomic<bool> met{false};
  fake.store->on_change = [&](const JobSnapshot& job) {
    if (job.preview && !met.exchange(true)) behind.Pass();
  };
  std::atomic<int64_t> ran{0};
  fake.model.on_step = [&](const RunRequest&, int64_t step) {
    if (step == 1) behind.AwaitArrival(1);
    fake.clock.Advance(kPace);
    ran = step + 1;
  };
  fake.model.finish.Close();
  const std::string id = fake.Submit("shown", [](GenerationRequest& r) {
    r.num_inference_steps = 20;
    r.formats = {ArtifactFormat::kPng};
    r.preview = PreviewOptions{};
  });
  ASSERT_TRUE(fake.model.finish.AwaitArrival(1)) << "all steps, though no picture gets on";
  EXPECT_EQ(ran, 20);
  behind.Open();
  fake.model.finish.Open();
  fake.AwaitEnd(id);
  EXPECT_THAT(fake.StepsShown(id), ElementsAre(1, 2, 20)) << "one on its way at most, and the last";
}

TEST(EnginePreview, TheReceiptNotesAModelWithoutColours) {
  FakeEngine fake;
  const JobSnapshot job = fake.AwaitEnd(
      fake.Submit("shown", [](GenerationRequest& r) { r.preview = PreviewOptions{}; }));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_FALSE(job.preview);
  EXPECT_THAT(job.receipt.notes, Contains("no previews: this kind of model has none"));
}

TEST(EnginePreview, ColoursThatCannotBeLearntAreANoteAndNotAskedForAgain) {
  Pictured fake;
  std::atomic<int> asked{0};
  fake.model.on_colours = [&] {
    ++asked;
    throw std::bad_alloc();
  };
  for (int i = 0; i < 2; ++i) {
    const JobSnapshot job = fake.AwaitEnd(fake.SubmitShown("shown", 3));
    EXPECT_EQ(job.state, JobState::kSucceeded);
    EXPECT_THAT(job.receipt.notes, Contains(HasSubstr("no previews: ")));
  }
  EXPECT_EQ(asked, 1);
}

TEST(EnginePreview, LearningColoursIsAUnitThatHoldsAnUrgentJobUpNoLonger) {
  Pictured fake;
  std::atomic<int> asked{0};
  fake.model.on_colours = [&] {
    ++asked;
    fake.Submit("urgent", [](GenerationRequest& r) {
      r.width = 128;
      r.priority = Priority::kUrgent;
    });
  };
  fake.AwaitEnd(fake.SubmitShown("shown", 200));
  ASSERT_TRUE(fake.WaitIdle());
  fake.AwaitEnd(fake.SubmitShown("again", 3));
  EXPECT_EQ(asked, 1);
  EXPECT_THAT(fake.model.forwards().front(), ElementsAre("urgent"));
}

TEST(EnginePreview, ACancelWhileColoursAreLearntEndsTheJobAndNoOtherJobsPreviews) {
  Pictured fake;
  std::string first;
  std::atomic<int> asked{0};
  Gate learning(/*open=*/false);
  fake.model.on_colours = [&] {
    if (++asked > 1) return;
    learning.Pass();
    StopPoint();
  };
  first = fake.SubmitShown("cancelled", 50);
  ASSERT_TRUE(learning.AwaitArrival(1));
  fake.engine->Cancel(first);
  learning.Open();
  EXPECT_EQ(fake.AwaitEnd(first).state, JobState::kCancelled);
  EXPECT_TRUE(fake.AwaitEnd(fake.SubmitShown("shown", 3)).preview);
}

TEST(EnginePreview, LeavesResultAndFingerprintAlone) {
  Pictured fake;
  const auto formats = [](GenerationRequest& r) {
    r.formats = {ArtifactFormat::kSafetensors, ArtifactFormat::kNpy};
  };
  const std::string plain = fake.Submit("same", formats);
  const std::string shown = fake.Submit("same", [&](GenerationRequest& r) {
    formats(r);
    r.preview = {1, 16};
  });
  const JobSnapshot a = fake.AwaitEnd(plain), b = fake.AwaitEnd(shown);
  EXPECT_EQ(a.receipt.fingerprint, b.receipt.fingerprint);
  for (size_t i = 0; i < 2; ++i) EXPECT_EQ(a.artifacts.at(i).sha256, b.artifacts.at(i).sha256);
}

TEST(EnginePreview, OptionsOutOfRangeAreRefusedByField) {
  FakeEngine fake;
  const auto field = [&](PreviewOptions options) {
    GenerationRequest request = SmallRequest("p");
    request.preview = options;
    return std::get<Error>(fake.engine->Submit(request)).field();
  };
  EXPECT_EQ(field({0, 64}), "preview.every_steps");
  EXPECT_EQ(field({1, 15}), "preview.max_side");
  EXPECT_EQ(field({1, 1025}), "preview.max_side");
}

}  // namespace
}  // namespace denoised
