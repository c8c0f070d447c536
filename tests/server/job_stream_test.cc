// What a stream that follows a job holds while its client does not read.
#include "server/job_stream.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/peak_memory.h"
#include "tests/server/fake_engine.h"

namespace denoised {
namespace {

constexpr size_t kPromptBytes = 60000;
constexpr int64_t kChanges = 31;

// One whose messages the test takes, as gRPC does.
class OpenStream : public WatchStream {
 public:
  explicit OpenStream(FakeEngine* engine, JobWatches* watches)
      : WatchStream(CallTimer(nullptr, nullptr, "WatchJob"), engine, watches) {}

  std::optional<v1::Job> Take() {
    const Action action = Next();
    if (!action.message) return std::nullopt;
    v1::Job job;
    ParseMessage(*action.message, &job);
    return job;
  }
};

// A single state a watcher would be 12 MB.
void ExpectLittle(const PeakMemory& memory) {
  if (!PeakMemory::kMeasures) return;
  EXPECT_LT(memory.Bytes(), int64_t{8} << 20);
}

class JobStreamTest : public testing::Test {
 protected:
  JobStreamTest() {
    GenerationRequest request;
    request.prompt = std::string(kPromptBytes, 'p');
    id_ = std::get<JobSnapshot>(engine_.Submit(request)).id;
    engine_.Change(id_, [](JobSnapshot& job) {
      job.state = JobState::kRunning;
      job.parameters.negative_prompt = std::string(kPromptBytes, 'n');
    });
    seen_ = engine_.jobs().Get(id_)->sequence;
    for (int64_t i = 1; i <= kChanges; ++i) {
      engine_.Change(id_, [i](JobSnapshot& job) { job.step = i; });
    }
  }
  std::shared_ptr<OpenStream> Follow() {
    auto stream = std::make_shared<OpenStream>(&engine_, &watches_);
    stream->Follow(id_, seen_);
    return stream;
  }

  FakeEngine engine_;
  TaskThread dispatcher_;
  JobWatches watches_{&dispatcher_};
  std::string id_;
  uint64_t seen_ = 0;
};

TEST_F(JobStreamTest, WatchersThatMissedMuchHoldNoneOfItBeforeItIsSent) {
  constexpr int kWatchers = 100;
  const PeakMemory memory;
  std::vector<std::shared_ptr<OpenStream>> streams;
  for (int i = 0; i < kWatchers; ++i) streams.push_back(Follow());
  ExpectLittle(memory);
  for (const auto& stream : streams) {
    for (int64_t step = 1; step <= kChanges; ++step) {
      const auto job = stream->Take();
      ASSERT_TRUE(job);
      EXPECT_EQ(job->step(), step);
      EXPECT_EQ(job->sequence(), seen_ + static_cast<uint64_t>(step));
      EXPECT_EQ(job->prompt().size(), kPromptBytes);
    }
    EXPECT_FALSE(stream->Take()) << "nothing is new";
  }
  ExpectLittle(memory);
}

TEST_F(JobStreamTest, AWatcherThatIsSlowSkipsWhatIsTooOldAndHasTheEnd) {
  const auto stream = Follow();
  ASSERT_EQ(stream->Take()->step(), 1);
  for (int64_t i = 0; i < 1000; ++i) {
    engine_.Change(id_, [i](JobSnapshot& job) { job.step = 1000 + i; });
  }
  engine_.Succeed(id_, "video");
  uint64_t last = 0;
  int64_t told = 0;
  v1::JobState state = v1::JOB_STATE_UNSPECIFIED;
  while (const auto job = stream->Take()) {
    EXPECT_GT(job->sequence(), last);
    last = job->sequence();
    state = job->state();
    ++told;
  }
  EXPECT_EQ(state, v1::SUCCEEDED);
  EXPECT_LT(told, 64);
}

TEST_F(JobStreamTest, AStateThatWaitsIsToldWithThePlaceOfNow) {
  int64_t before = 3;
  engine_.place = [&](JobSnapshot* job) { job->queue_position = before; };
  const auto stream = Follow();
  EXPECT_EQ(stream->Take()->queue_position(), 3);
  before = 2;
  EXPECT_EQ(stream->Take()->queue_position(), 2);
}

}  // namespace
}  // namespace denoised
