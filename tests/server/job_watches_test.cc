// One watch a job, and streams that hear of every change.
#include "server/job_watches.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/job_stream.h"
#include "tests/eventually.h"
#include "tests/forwarding_store.h"

namespace denoised {
namespace {

// Knows how many watches of it are live.
class CountingStore : public ForwardingStore {
 public:
  CountingStore() : ForwardingStore(MakeMemoryJobStore(1000, 1 << 30)) {}
  std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake) override {
    ++watches;
    return {nullptr, [this, watch = ForwardingStore::Watch(id, std::move(wake))](void*) mutable {
              watch.reset();
              --watches;
            }};
  }
  std::atomic<int> watches{0};
};

// Reads the job's step at each pump, and never has anything to write.
class ReadingStream : public PulledStream {
 public:
  ReadingStream(JobStore* jobs, std::string job_id)
      : PulledStream(CallTimer(nullptr, nullptr, "WatchJob")), jobs_(jobs), id_(std::move(job_id)) {
    Open([] {});
  }
  std::atomic<int64_t> step{-1};
  std::atomic<int> pumps{0};

 protected:
  Action Next() override {
    ++pumps;
    step = jobs_->Get(id_)->step;
    return {};
  }

 private:
  JobStore* const jobs_;
  const std::string id_;
};

class JobWatchesTest : public testing::Test {
 protected:
  JobWatchesTest() {
    JobSnapshot job;
    job.id = id_;
    store_.Add(job, {});
    store_.Start(id_);
  }
  // Which step it is then, once all streams have been woken.
  int64_t Step() {
    const int64_t step = store_.Update(id_, [](JobSnapshot& job) { ++job.step; })->step;
    std::promise<void> woken;
    dispatcher_.Post([&] { woken.set_value(); });
    woken.get_future().wait();
    return step;
  }
  std::shared_ptr<ReadingStream> Stream() { return std::make_shared<ReadingStream>(&store_, id_); }

  const std::string id_ = "a-job";
  CountingStore store_;
  TaskThread dispatcher_;
  JobWatches watches_{&dispatcher_};
};

TEST_F(JobWatchesTest, TheStoreHasOneWatchAndEachStreamHearsOfAChange) {
  std::vector<std::shared_ptr<ReadingStream>> streams;
  std::vector<std::shared_ptr<void>> tickets;
  for (int i = 0; i < 20; ++i) {
    streams.push_back(Stream());
    tickets.push_back(watches_.Follow(store_, id_, streams.back()));
  }
  EXPECT_EQ(store_.watches, 1);
  for (int i = 0; i < 3; ++i) {
    const int64_t step = Step();
    for (const auto& stream : streams) EXPECT_EQ(stream->step, step);
  }
}

TEST_F(JobWatchesTest, ChangesThatComeWhileTheDispatcherIsBusyAreOnePump) {
  const auto stream = Stream();
  const auto ticket = watches_.Follow(store_, id_, stream);
  const int before = stream->pumps;
  std::promise<void> go;
  dispatcher_.Post([&] { go.get_future().wait(); });
  for (int i = 0; i < 9; ++i) store_.Update(id_, [](JobSnapshot& job) { ++job.step; });
  go.set_value();
  EXPECT_EQ(Step(), 10);
  EXPECT_EQ(stream->step, 10);
  EXPECT_LE(stream->pumps, before + 2);
}

TEST_F(JobWatchesTest, WithTheLastTicketTheWatchGoesAndWhoComesLaterHearsAgain) {
  const auto first = Stream(), second = Stream(), third = Stream();
  auto one = watches_.Follow(store_, id_, first), two = watches_.Follow(store_, id_, second);
  one.reset();
  EXPECT_EQ(store_.watches, 1);
  Step();
  EXPECT_EQ(second->step, 1);
  EXPECT_EQ(first->step, 0) << "it follows no longer";
  two.reset();
  EXPECT_EQ(store_.watches, 0) << "the job may be forgotten";
  const auto again = watches_.Follow(store_, id_, third);
  EXPECT_EQ(store_.watches, 1);
  Step();
  EXPECT_EQ(third->step, 2);
}

TEST_F(JobWatchesTest, StreamsComeAndGoBesideChanges) {
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        auto stream = Stream();
        const auto ticket = watches_.Follow(store_, id_, stream);
        const int64_t step = Step();
        // Another client's change may be about to post what wakes for both.
        EXPECT_TRUE(Eventually([&] { return stream->step >= step; }));
        if (round % 2 == 0) stream.reset();  // it may go before its ticket
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(store_.watches, 0);
}

}  // namespace
}  // namespace denoised
