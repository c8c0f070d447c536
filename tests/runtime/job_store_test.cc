#include "runtime/job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

JobSnapshot JobNamed(const std::string& id) {
  JobSnapshot job;
  job.id = id;
  return job;
}

void Put(JobStore& store, const std::string& id, size_t bytes) {
  store.PutArtifact(id, {ArtifactFormat::kNpy, "video.npy", 0, "digest"}, std::string(bytes, 'x'));
}

void End(JobStore& store, const std::string& id, JobState state = JobState::kSucceeded) {
  store.Update(id, [=](JobSnapshot& job) { job.state = state; });
}

std::vector<std::string> IdsOf(const JobPage& page) {
  std::vector<std::string> ids;
  for (const JobSnapshot& job : page.jobs) ids.push_back(job.id);
  return ids;
}

class JobStoreTest : public testing::Test {
 protected:
  void Add(const std::string& ids) {
    for (char id : ids) store_->Add(JobNamed(std::string(1, id)), {});
  }
  std::unique_ptr<JobStore> store_ = MakeMemoryJobStore(100, 1 << 20);
};

TEST_F(JobStoreTest, AnUnknownJobIsNotThere) {
  EXPECT_FALSE(store_->Get("a"));
  EXPECT_FALSE(store_->Update("a", [](JobSnapshot&) { FAIL(); }));
  EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kMp4));
  Put(*store_, "a", 1);
  EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kNpy));
}

TEST_F(JobStoreTest, ChangesRaiseTheSequenceByOneUntilTheEnd) {
  Add("a");
  EXPECT_EQ(store_->Get("a")->sequence, 1u);
  EXPECT_EQ(store_->Update("a", [](JobSnapshot& job) { job.step = 4; })->sequence, 2u);
  EXPECT_EQ(store_->Get("a")->step, 4);
  End(*store_, "a", JobState::kFailed);
  EXPECT_EQ(store_->Get("a")->sequence, 3u);
  const auto after = store_->Update("a", [](JobSnapshot& job) { job.state = JobState::kQueued; });
  EXPECT_EQ(after->state, JobState::kFailed);
  EXPECT_EQ(after->sequence, 3u);
}

TEST_F(JobStoreTest, ListsNewestFirstInPages) {
  Add("abcde");
  const JobPage first = store_->List(std::nullopt, 2, "");
  EXPECT_THAT(IdsOf(first), ElementsAre("e", "d"));
  Add("f");  // new jobs do not move the pages that are still to come
  const JobPage second = store_->List(std::nullopt, 2, first.next_page_token);
  EXPECT_THAT(IdsOf(second), ElementsAre("c", "b"));
  const JobPage third = store_->List(std::nullopt, 2, second.next_page_token);
  EXPECT_THAT(IdsOf(third), ElementsAre("a"));
  EXPECT_EQ(third.next_page_token, "");
}

TEST_F(JobStoreTest, APageThatEndsTheListHasNoToken) {
  Add("ab");
  EXPECT_EQ(store_->List(std::nullopt, 2, "").next_page_token, "");
  EXPECT_THAT(store_->List(JobState::kRunning, 2, "").jobs, IsEmpty());
}

TEST_F(JobStoreTest, ListsByState) {
  Add("abcdef");
  for (const char* id : {"a", "c", "e"}) End(*store_, id, JobState::kCancelled);
  const JobPage first = store_->List(JobState::kCancelled, 2, "");
  EXPECT_THAT(IdsOf(first), ElementsAre("e", "c"));
  const JobPage second = store_->List(JobState::kCancelled, 2, first.next_page_token);
  EXPECT_THAT(IdsOf(second), ElementsAre("a"));
  EXPECT_EQ(second.next_page_token, "");
}

TEST_F(JobStoreTest, PagingGoesOnWhereTheTokensJobIsForgotten) {
  store_ = MakeMemoryJobStore(2, 1 << 20);
  Add("abc");
  const JobPage first = store_->List(std::nullopt, 2, "");  // c, b
  End(*store_, "b");
  End(*store_, "c");
  Add("d");
  End(*store_, "d");  // forgets b
  EXPECT_THAT(IdsOf(store_->List(std::nullopt, 2, first.next_page_token)), ElementsAre("a"));
}

TEST_F(JobStoreTest, TokensAndPageSizesThatItNeverGaveAreRefused) {
  Add("abc");
  for (const char* token : {"x", "-1", "1 ", "+2", "1e3", "99999999999999999999", "\n"}) {
    EXPECT_THROW(store_->List(std::nullopt, 2, token), Error) << token;
  }
  EXPECT_THROW(store_->List(std::nullopt, 0, ""), Error);
}

TEST_F(JobStoreTest, ForgetsTheOldestEndedJobsAndNoOthers) {
  store_ = MakeMemoryJobStore(2, 1 << 20);
  Add("abcd");
  for (const char* id : {"c", "a", "d"}) End(*store_, id);
  EXPECT_FALSE(store_->Get("c")) << "ended first";
  EXPECT_TRUE(store_->Get("a"));
  EXPECT_TRUE(store_->Get("b")) << "still queued";
  EXPECT_TRUE(store_->Get("d"));
}

TEST_F(JobStoreTest, ResultsStayWithinTheirBudgetAndTheNewestIsKeptWhateverItsSize) {
  store_ = MakeMemoryJobStore(100, 10);
  Add("abc");
  Put(*store_, "a", 6);
  End(*store_, "a");
  Put(*store_, "b", 4);
  End(*store_, "b");
  EXPECT_TRUE(store_->Get("a")) << "ten bytes fit";
  const auto held = store_->GetArtifact("a", ArtifactFormat::kNpy);
  Put(*store_, "c", 1000);
  End(*store_, "c");
  EXPECT_FALSE(store_->Get("a"));
  EXPECT_FALSE(store_->Get("b"));
  EXPECT_EQ(store_->GetArtifact("c", ArtifactFormat::kNpy)->size(), 1000u);
  EXPECT_EQ(ReadAll(*held), "xxxxxx") << "who reads it keeps it";
}

TEST_F(JobStoreTest, AReplacedArtifactCountsOnce) {
  store_ = MakeMemoryJobStore(100, 10);
  Add("ab");
  for (int i = 0; i < 5; ++i) Put(*store_, "a", 5);
  End(*store_, "a");
  Put(*store_, "b", 5);
  End(*store_, "b");
  EXPECT_TRUE(store_->Get("a"));
}

TEST_F(JobStoreTest, AWatcherIsWokenForEachChangeUntilItsHandleIsGone) {
  Add("ab");
  auto wakes = std::make_shared<int>(0);
  auto handle = store_->Watch("a", [wakes] { ++*wakes; });
  store_->Update("a", [](JobSnapshot&) {});
  store_->Update("b", [](JobSnapshot&) {});
  EXPECT_EQ(*wakes, 1);
  handle.reset();
  EXPECT_EQ(wakes.use_count(), 1) << "the store keeps nothing of it";
  store_->Update("a", [](JobSnapshot&) {});
  EXPECT_EQ(*wakes, 1);
}

TEST_F(JobStoreTest, TheLastChangeWakesTooEvenWhenItsJobIsForgottenAtOnce) {
  store_ = MakeMemoryJobStore(1, 10);
  Add("ab");
  Put(*store_, "a", 100);
  End(*store_, "b");
  int wakes = 0;
  const auto handle = store_->Watch("a", [&] { ++wakes; });
  End(*store_, "a");
  EXPECT_EQ(wakes, 1);
  EXPECT_TRUE(store_->Get("a"));
  EXPECT_TRUE(store_->Get("b")) << "without a result it takes no room from results";
}

TEST_F(JobStoreTest, JobsThatComeToNothingPushOutNobodysResults) {
  store_ = MakeMemoryJobStore(2, 1 << 20);
  Add("ab");
  for (const char* id : {"a", "b"}) {
    Put(*store_, id, 5);
    End(*store_, id);
  }
  for (int i = 0; i < 256; ++i) {
    const std::string id = "c" + std::to_string(i);
    store_->Add(JobNamed(id), {});
    End(*store_, id, JobState::kCancelled);
  }
  EXPECT_TRUE(store_->GetArtifact("a", ArtifactFormat::kNpy));
  EXPECT_TRUE(store_->GetArtifact("b", ArtifactFormat::kNpy));
  EXPECT_FALSE(store_->Get("c253")) << "they have a limit of their own";
  EXPECT_TRUE(store_->Get("c254"));
}

TEST_F(JobStoreTest, AJobIsNotForgottenUnderItsWatcher) {
  store_ = MakeMemoryJobStore(1, 1 << 20);
  Add("abcd");
  auto watch = store_->Watch("a", [] {});
  End(*store_, "a");
  End(*store_, "b");
  End(*store_, "c");
  EXPECT_TRUE(store_->Get("a"));
  EXPECT_FALSE(store_->Get("b"));
  watch.reset();
  End(*store_, "d");
  EXPECT_FALSE(store_->Get("a")) << "nobody looks any more";
  EXPECT_TRUE(store_->Get("d"));
}

TEST_F(JobStoreTest, AJobIsNotForgottenWhileItsResultIsRead) {
  store_ = MakeMemoryJobStore(1, 100);
  Add("abc");
  Put(*store_, "a", 5);
  End(*store_, "a");
  auto reading = store_->GetArtifact("a", ArtifactFormat::kNpy);
  Put(*store_, "b", 5);
  End(*store_, "b");
  EXPECT_TRUE(store_->Get("a"));
  Put(*store_, "c", 500);
  End(*store_, "c");
  EXPECT_FALSE(store_->Get("a")) << "readers do not make the store grow without end";
  EXPECT_TRUE(store_->Get("c"));
}

TEST_F(JobStoreTest, CountsTheResultsThatNobodyHasFetched) {
  const auto young = std::chrono::hours(1);
  Add("abc");
  EXPECT_EQ(store_->CountUnfetched(young), 0);
  for (const char* id : {"a", "b"}) {
    Put(*store_, id, 5);
    End(*store_, id);
  }
  End(*store_, "c", JobState::kCancelled);
  EXPECT_EQ(store_->CountUnfetched(young), 2);
  store_->MarkFetched("a");
  store_->MarkFetched("absent");
  EXPECT_EQ(store_->CountUnfetched(young), 1);
  EXPECT_EQ(store_->CountUnfetched(std::chrono::seconds(0)), 0) << "none ended just now";
}

TEST_F(JobStoreTest, APageMayBeCutBehindEachOfItsJobs) {
  Add("abcde");
  const JobPage page = store_->List(std::nullopt, 4, "");
  ASSERT_THAT(page.tokens, SizeIs(4));
  EXPECT_EQ(page.tokens.back(), page.next_page_token);
  EXPECT_THAT(IdsOf(store_->List(std::nullopt, 4, page.tokens[1])), ElementsAre("c", "b", "a"));
}

TEST_F(JobStoreTest, AWatcherMayLetGoOfItsHandleWhileItIsWoken) {
  Add("a");
  auto handle = std::make_shared<std::shared_ptr<void>>();
  int wakes = 0;
  *handle = store_->Watch("a", [&wakes, handle] {
    ++wakes;
    handle->reset();
  });
  store_->Update("a", [](JobSnapshot&) {});
  store_->Update("a", [](JobSnapshot&) {});
  EXPECT_EQ(wakes, 1);
}

TEST_F(JobStoreTest, WatchersOfUnknownJobsAreHarmless) {
  const auto handle = store_->Watch("absent", [] { FAIL(); });
  Add("a");
  store_->Update("a", [](JobSnapshot&) {});
}

TEST_F(JobStoreTest, WatchersMayComeAndGoWhileTheJobChanges) {
  Add("a");
  std::atomic<bool> stop{false};
  auto wakes = std::make_shared<std::atomic<int64_t>>(0);
  std::vector<std::thread> watchers;
  for (int i = 0; i < 3; ++i) {
    watchers.emplace_back([&, wakes] {
      while (!stop) const auto handle = store_->Watch("a", [wakes] { ++*wakes; });
    });
  }
  const auto lasting = store_->Watch("a", [wakes] { ++*wakes; });
  for (int i = 0; i < 2000; ++i) store_->Update("a", [](JobSnapshot& job) { ++job.step; });
  stop = true;
  for (std::thread& watcher : watchers) watcher.join();
  EXPECT_EQ(store_->Get("a")->sequence, 2001u);
  EXPECT_GE(*wakes, 2000) << "the lasting one missed none";
  store_->Update("a", [](JobSnapshot&) {});
  EXPECT_EQ(wakes.use_count(), 2) << "ours and the lasting one's";
}

TEST_F(JobStoreTest, ManyThreadsLoseNoChange) {
  Add("a");
  std::vector<std::thread> writers;
  for (int i = 0; i < 4; ++i) {
    writers.emplace_back([&] {
      for (int n = 0; n < 500; ++n) store_->Update("a", [](JobSnapshot& job) { ++job.step; });
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(store_->Get("a")->step, 2000);
  EXPECT_EQ(store_->Get("a")->sequence, 2001u);
}

}  // namespace
}  // namespace denoised
