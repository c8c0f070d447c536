#include "runtime/job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <thread>

#include "tests/forwarding_store.h"
#include "tests/runtime/store_harness.h"

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

// Both stores are one to their users.
enum class Kind : uint8_t { kMemory, kDurable };

class JobStoreTest : public testing::TestWithParam<Kind> {
 protected:
  std::unique_ptr<JobStore> Make(size_t max_finished, size_t max_artifact_bytes) {
    store_.reset();
    if (GetParam() == Kind::kMemory) return MakeMemoryJobStore(max_finished, max_artifact_bytes);
    folder_.emplace();
    StoreOptions options;
    options.state_dir = folder_->path();
    options.max_finished = max_finished;
    options.max_artifact_bytes = max_artifact_bytes;
    return OpenJobStore(options, &logger_.logger);
  }
  void SetUp() override { store_ = Make(100, 1 << 20); }
  void Add(const std::string& ids) {
    for (char id : ids) store_->Add(JobNamed(std::string(1, id)), {});
  }
  QuietLogger logger_;
  std::optional<TemporaryFolder> folder_;
  std::unique_ptr<JobStore> store_;
};
INSTANTIATE_TEST_SUITE_P(Stores, JobStoreTest, testing::Values(Kind::kMemory, Kind::kDurable),
                         [](const auto& kind) {
                           return kind.param == Kind::kMemory ? "Memory" : "Durable";
                         });

TEST_P(JobStoreTest, AnUnknownJobIsNotThere) {
  EXPECT_FALSE(store_->Get("a"));
  EXPECT_FALSE(store_->Update("a", [](JobSnapshot&) { FAIL(); }));
  EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kMp4));
  Put(*store_, "a", 1);
  EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kNpy));
}

TEST_P(JobStoreTest, ChangesRaiseTheSequenceByOneUntilTheEnd) {
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

std::shared_ptr<const JobPreview> PreviewOf(int64_t step) {
  return std::make_shared<JobPreview>(JobPreview{step, "png"});
}

TEST_P(JobStoreTest, OfAJobsPreviewsTheNewestAloneIsReplayed) {
  Add("a");
  for (int64_t step : {1, 2}) {
    store_->Update("a", [=](JobSnapshot& job) { job.preview = PreviewOf(step); });
  }
  const auto missed = Replay(*store_, "a", 1);
  ASSERT_THAT(missed, SizeIs(2));
  EXPECT_FALSE(missed[0].preview);
  EXPECT_EQ(missed[1].preview->step, 2);
}

TEST_P(JobStoreTest, EndedJobsKeepAFewPreviewsInAll) {
  std::vector<std::string> ids;
  for (int i = 0; i < 40; ++i) {
    ids.push_back("job" + std::to_string(i));
    store_->Add(JobNamed(ids.back()), {});
    store_->Update(ids.back(), [=](JobSnapshot& job) { job.preview = PreviewOf(i); });
    if (i > 0) End(*store_, ids.back());
  }
  EXPECT_TRUE(store_->Get(ids[0])->preview) << "it has not ended";
  EXPECT_TRUE(store_->Get(ids[39])->preview);
  size_t kept = 0;
  for (const std::string& id : ids) kept += store_->Get(id)->preview ? 1 : 0;
  EXPECT_EQ(kept, 1 + 16u);
  EXPECT_FALSE(store_->Get(ids[1])->preview);
}

// Whoever submits waits for its lock meanwhile. Of many tries the quickest, so that it is the work
// that is compared and not the machine.
TEST_P(JobStoreTest, APageCostsWhatItShowsAndNotWhatItPassesOver) {
  if (GetParam() == Kind::kDurable) GTEST_SKIP() << "the same lists, and a disk besides";
  const auto quickest = [&] {
    auto best = std::chrono::nanoseconds::max();
    for (int i = 0; i < 200; ++i) {
      const auto start = std::chrono::steady_clock::now();
      EXPECT_THAT(IdsOf(store_->List(JobState::kRunning, 10, "")), ElementsAre("runs"));
      best = std::min<std::chrono::nanoseconds>(best, std::chrono::steady_clock::now() - start);
    }
    return best;
  };
  store_->Add(JobNamed("runs"), {});
  store_->Start("runs");
  const auto among_one = quickest();
  for (int i = 0; i < 20000; ++i) store_->Add(JobNamed("waits" + std::to_string(i)), {});
  EXPECT_LT(quickest(), 20 * among_one) << "20,000 jobs of another state are newer";
}

TEST_P(JobStoreTest, AJobIsListedInItsStateAndInNoOther) {
  Add("abcd");
  store_->Start("b");
  store_->Start("c");
  End(*store_, "c");
  store_->Start("d");
  store_->Interrupt("d");
  const auto in = [&](JobState state) { return IdsOf(store_->List(state, 10, "")); };
  EXPECT_THAT(in(JobState::kQueued), ElementsAre("d", "a"));
  EXPECT_THAT(in(JobState::kRunning), ElementsAre("b"));
  EXPECT_THAT(in(JobState::kSucceeded), ElementsAre("c"));
  EXPECT_THAT(in(JobState::kFailed), IsEmpty());
  store_->Delete("c");
  EXPECT_THAT(in(JobState::kSucceeded), IsEmpty());
  EXPECT_THAT(IdsOf(store_->List(std::nullopt, 10, "")), ElementsAre("d", "b", "a"));
}

TEST_P(JobStoreTest, APageMayBeLongerThanWhatIsCopiedAtOnce) {
  std::vector<std::string> ids;
  for (int i = 0; i < 200; ++i) {
    ids.insert(ids.begin(), "job" + std::to_string(i));
    store_->Add(JobNamed(ids.front()), {});
  }
  const JobPage first = store_->List(std::nullopt, 150, "");
  EXPECT_EQ(IdsOf(first), std::vector(ids.begin(), ids.begin() + 150));
  const JobPage second = store_->List(JobState::kQueued, 50, first.next_page_token);
  EXPECT_EQ(IdsOf(second), std::vector(ids.begin() + 150, ids.end()));
  EXPECT_EQ(second.next_page_token, "");
}

TEST_P(JobStoreTest, ListsNewestFirstInPages) {
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

TEST_P(JobStoreTest, APageThatEndsTheListHasNoToken) {
  Add("ab");
  EXPECT_EQ(store_->List(std::nullopt, 2, "").next_page_token, "");
  EXPECT_THAT(store_->List(JobState::kRunning, 2, "").jobs, IsEmpty());
}

TEST_P(JobStoreTest, ListsByState) {
  Add("abcdef");
  for (const char* id : {"a", "c", "e"}) End(*store_, id, JobState::kCancelled);
  const JobPage first = store_->List(JobState::kCancelled, 2, "");
  EXPECT_THAT(IdsOf(first), ElementsAre("e", "c"));
  const JobPage second = store_->List(JobState::kCancelled, 2, first.next_page_token);
  EXPECT_THAT(IdsOf(second), ElementsAre("a"));
  EXPECT_EQ(second.next_page_token, "");
}

TEST_P(JobStoreTest, PagingGoesOnWhereTheTokensJobIsForgotten) {
  store_ = Make(2, 1 << 20);
  Add("abc");
  const JobPage first = store_->List(std::nullopt, 2, "");  // c, b
  End(*store_, "b");
  End(*store_, "c");
  Add("d");
  End(*store_, "d");  // forgets b
  EXPECT_THAT(IdsOf(store_->List(std::nullopt, 2, first.next_page_token)), ElementsAre("a"));
}

TEST_P(JobStoreTest, TokensAndPageSizesThatItNeverGaveAreRefused) {
  Add("abc");
  for (const char* token : {"x", "-1", "1 ", "+2", "1e3", "99999999999999999999", "\n"}) {
    EXPECT_THROW(store_->List(std::nullopt, 2, token), Error) << token;
  }
  EXPECT_THROW(store_->List(std::nullopt, 0, ""), Error);
}

TEST_P(JobStoreTest, ForgetsTheOldestEndedJobsAndNoOthers) {
  store_ = Make(2, 1 << 20);
  Add("abcd");
  for (const char* id : {"c", "a", "d"}) End(*store_, id);
  EXPECT_FALSE(store_->Get("c")) << "ended first";
  EXPECT_TRUE(store_->Get("a"));
  EXPECT_TRUE(store_->Get("b")) << "still queued";
  EXPECT_TRUE(store_->Get("d"));
}

TEST_P(JobStoreTest, ResultsStayWithinTheirBudgetAndTheNewestIsKeptWhateverItsSize) {
  store_ = Make(100, 10);
  Add("abc");
  Put(*store_, "a", 6);
  End(*store_, "a");
  Put(*store_, "b", 4);
  End(*store_, "b");
  EXPECT_TRUE(store_->Get("a")) << "ten bytes fit";
  const auto held = store_->GetArtifact("a", ArtifactFormat::kNpy);
  Put(*store_, "c", 1000);
  End(*store_, "c");
  EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kNpy));
  EXPECT_FALSE(store_->GetArtifact("b", ArtifactFormat::kNpy));
  EXPECT_EQ(store_->GetArtifact("c", ArtifactFormat::kNpy)->size(), 1000u);
  for (const char* id : {"a", "b"}) EXPECT_EQ(store_->Get(id).has_value(), store_->durable());
  EXPECT_EQ(ReadAll(*held), "xxxxxx") << "who reads it keeps it";
}

TEST_P(JobStoreTest, AReplacedArtifactCountsOnce) {
  store_ = Make(100, 10);
  Add("ab");
  for (int i = 0; i < 5; ++i) Put(*store_, "a", 5);
  End(*store_, "a");
  Put(*store_, "b", 5);
  End(*store_, "b");
  EXPECT_TRUE(store_->GetArtifact("a", ArtifactFormat::kNpy));
}

TEST_P(JobStoreTest, AWatcherIsWokenForEachChangeUntilItsHandleIsGone) {
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

TEST_P(JobStoreTest, TheLastChangeWakesTooEvenWhenItsJobIsForgottenAtOnce) {
  store_ = Make(1, 10);
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

TEST_P(JobStoreTest, JobsThatComeToNothingPushOutNobodysResults) {
  store_ = Make(2, 1 << 20);
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

TEST_P(JobStoreTest, AJobIsNotForgottenUnderItsWatcher) {
  store_ = Make(1, 1 << 20);
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

TEST_P(JobStoreTest, AJobIsNotForgottenWhileItsResultIsRead) {
  store_ = Make(1, 100);
  Add("abc");
  Put(*store_, "a", 5);
  End(*store_, "a");
  auto reading = store_->GetArtifact("a", ArtifactFormat::kNpy);
  Put(*store_, "b", 5);
  End(*store_, "b");
  EXPECT_TRUE(store_->Get("a"));
  Put(*store_, "c", 500);
  End(*store_, "c");
  EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kNpy))
      << "readers do not make the store grow without end";
  EXPECT_TRUE(store_->Get("c"));
}

TEST_P(JobStoreTest, CountsTheResultsThatNobodyHasFetched) {
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

TEST_P(JobStoreTest, APageMayBeCutBehindEachOfItsJobs) {
  Add("abcde");
  const JobPage page = store_->List(std::nullopt, 4, "");
  ASSERT_THAT(page.tokens, SizeIs(4));
  EXPECT_EQ(page.tokens.back(), page.next_page_token);
  EXPECT_THAT(IdsOf(store_->List(std::nullopt, 4, page.tokens[1])), ElementsAre("c", "b", "a"));
}

TEST_P(JobStoreTest, AWatcherMayLetGoOfItsHandleWhileItIsWoken) {
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

TEST_P(JobStoreTest, WatchersOfUnknownJobsAreHarmless) {
  const auto handle = store_->Watch("absent", [] { FAIL(); });
  Add("a");
  store_->Update("a", [](JobSnapshot&) {});
}

TEST_P(JobStoreTest, WatchersMayComeAndGoWhileTheJobChanges) {
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

TEST_P(JobStoreTest, ManyThreadsLoseNoChange) {
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

TEST_P(JobStoreTest, StatesMoveForwardOnly) {
  Add("a");
  EXPECT_EQ(store_->Start("a"), 1);
  EXPECT_EQ(store_->Get("a")->state, JobState::kRunning);
  EXPECT_TRUE(store_->Get("a")->started_at);
  const auto go = [&](JobState to) {
    return store_->Update("a", [to](JobSnapshot& job) { job.state = to; });
  };
  EXPECT_THROW(go(JobState::kQueued), Error);
  EXPECT_EQ(store_->Get("a")->state, JobState::kRunning) << "nothing has changed";
  EXPECT_EQ(store_->Get("a")->sequence, 2u);
  EXPECT_EQ(go(JobState::kSuspended)->state, JobState::kSuspended);
  EXPECT_EQ(go(JobState::kQueued)->state, JobState::kQueued);
  EXPECT_EQ(store_->Start("a"), 2);
  store_->Interrupt("a");
  EXPECT_EQ(store_->Get("a")->state, JobState::kQueued);
  End(*store_, "a");
  store_->Interrupt("a");
  EXPECT_EQ(store_->Get("a")->state, JobState::kSucceeded);
  EXPECT_THROW(store_->Start("a"), Error);
  EXPECT_THROW(store_->Start("absent"), Error);
}

TEST_P(JobStoreTest, SeveralStartAsOneAndEachIsAnswered) {
  Add("abe");
  End(*store_, "e");
  const auto started = store_->StartAll({"a", "absent", "e", "b"});
  ASSERT_EQ(started.size(), 4u);
  EXPECT_EQ(std::get<int64_t>(started[0]), 1);
  EXPECT_EQ(std::get<Error>(started[1]).reason(), "JOB_NOT_FOUND");
  EXPECT_EQ(std::get<Error>(started[2]).reason(), "JOB_FINISHED");
  EXPECT_EQ(std::get<int64_t>(started[3]), 1);
  for (const char* id : {"a", "b"}) {
    EXPECT_EQ(store_->Get(id)->state, JobState::kRunning);
    EXPECT_EQ(store_->Get(id)->sequence, 2u);
  }
  EXPECT_EQ(store_->Get("e")->state, JobState::kSucceeded);
  EXPECT_TRUE(store_->StartAll({}).empty());
}

TEST_P(JobStoreTest, AKeyMakesOneJobOfOneRequest) {
  GenerationRequest request;
  request.idempotency_key = "order 7";
  request.prompt = "a red circle";
  const auto first = store_->Add(JobNamed("a"), request);
  EXPECT_TRUE(first.second);
  EXPECT_EQ(first.first.id, "a");
  const auto again = store_->Add(JobNamed("b"), request);
  EXPECT_FALSE(again.second);
  EXPECT_EQ(again.first.id, "a");
  EXPECT_FALSE(store_->Get("b"));
  request.prompt = "a blue circle";
  try {
    store_->Add(JobNamed("c"), request);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kAlreadyExists);
    EXPECT_EQ(error.reason(), "IDEMPOTENCY_KEY");
  }
  End(*store_, "a");
  store_->Delete("a");
  EXPECT_TRUE(store_->Add(JobNamed("c"), request).second) << "the key went with its job";
}

TEST_P(JobStoreTest, AKeyMakesOneJobForManyThreadsAtOnce) {
  GenerationRequest request;
  request.idempotency_key = "one";
  std::atomic<int> made{0};
  std::vector<std::string> ids(8);
  std::vector<std::thread> clients;
  for (size_t i = 0; i < ids.size(); ++i) {
    clients.emplace_back([&, i] {
      const auto added = store_->Add(JobNamed("job" + std::to_string(i)), request);
      made += added.second ? 1 : 0;
      ids[i] = added.first.id;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(made, 1);
  EXPECT_THAT(ids, testing::Each(ids.front()));
  EXPECT_THAT(store_->List(std::nullopt, 100, "").jobs, SizeIs(1));
}

TEST_P(JobStoreTest, OnlyEndedJobsAreDeleted) {
  Add("a");
  Put(*store_, "a", 5);
  EXPECT_THROW(store_->Delete("a"), Error);
  EXPECT_THROW(store_->Delete("absent"), Error);
  End(*store_, "a");
  const auto reading = store_->GetArtifact("a", ArtifactFormat::kNpy);
  store_->Delete("a");
  EXPECT_FALSE(store_->Get("a"));
  EXPECT_FALSE(store_->GetArtifact("a", ArtifactFormat::kNpy));
  EXPECT_EQ(ReadAll(*reading), "xxxxx") << "who reads it keeps it";
  EXPECT_THROW(store_->Delete("a"), Error);
}

TEST_P(JobStoreTest, ResultsAreReadInPieces) {
  Add("a");
  store_->PutArtifact("a", {ArtifactFormat::kMp4, "video.mp4", 0, ""}, "0123456789");
  const auto artifact = store_->GetArtifact("a", ArtifactFormat::kMp4);
  std::string piece(4, ' ');
  EXPECT_EQ(artifact->ReadAt(3, piece.data(), 4), 4u);
  EXPECT_EQ(piece, "3456");
  EXPECT_EQ(artifact->ReadAt(8, piece.data(), 4), 2u);
  EXPECT_EQ(artifact->ReadAt(10, piece.data(), 4), 0u);
  EXPECT_EQ(artifact->ReadAt(UINT64_MAX, piece.data(), 4), 0u);
  EXPECT_EQ(artifact->info().sha256,
            "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882")
      << "as sha256sum says";
}

TEST_P(JobStoreTest, AWatcherThatComesBackIsToldWhatItMissed) {
  Add("a");
  store_->Start("a");
  for (int i = 1; i <= 3; ++i) {
    store_->Update("a", [i](JobSnapshot& job) {
      job.stage = JobStage::kDenoise;
      job.step = i;
      job.stage_seconds.emplace_back(JobStage::kDenoise, i);
    });
  }
  store_->Update("a", [](JobSnapshot& job) {
    job.state = JobState::kFailed;
    job.error = JobError{StatusCode::kInternal, "why", "", ""};
    job.finished_at = std::chrono::system_clock::now();
  });
  const auto missed = Replay(*store_, "a", 2);
  ASSERT_THAT(missed, SizeIs(4));
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(missed[i].sequence, 3u + i);
    EXPECT_EQ(missed[i].step, i + 1);
    EXPECT_EQ(missed[i].state, JobState::kRunning);
    EXPECT_EQ(missed[i].stage_seconds.size(), 1u + i);
    EXPECT_FALSE(missed[i].error || missed[i].finished_at) << "what came with the end";
  }
  EXPECT_EQ(missed[3].state, JobState::kFailed);
  EXPECT_TRUE(missed[3].error);
  EXPECT_FALSE(Replay(*store_, "a", 0).front().started_at) << "it was queued then";
  EXPECT_THAT(Replay(*store_, "a", 6), IsEmpty());
  EXPECT_THAT(Replay(*store_, "absent", 0), IsEmpty());
}

TEST_P(JobStoreTest, WhoWatchesAJobThatWaitsIsKnownAndCanBeToldOfWhatIsNotKept) {
  for (const char* id : {"a", "b", "c", "d"}) Add(id);
  EXPECT_THAT(store_->WatchedWaiting("", 10), IsEmpty());
  int wakes = 0;
  auto of_a = store_->Watch("a", [&] { ++wakes; });
  const auto of_b = store_->Watch("b", [] {}), of_d = store_->Watch("d", [] {});
  EXPECT_THAT(store_->WatchedWaiting("", 10), ElementsAre("a", "b", "d"));
  EXPECT_THAT(store_->WatchedWaiting("", 2), ElementsAre("a", "b"));
  EXPECT_THAT(store_->WatchedWaiting("b", 2), ElementsAre("d"));
  EXPECT_EQ(store_->Touch("a"), 2u);
  EXPECT_EQ(wakes, 1);
  EXPECT_EQ(store_->After("a", 1)->sequence, 2u);
  EXPECT_EQ(store_->Touch("d"), 2u);
  store_->Start("d");
  EXPECT_EQ(store_->After("d", 1)->state, JobState::kRunning) << "it waited as it did before";
  store_->Start("b");
  EXPECT_THAT(store_->WatchedWaiting("", 10), ElementsAre("a"));
  EXPECT_EQ(store_->Touch("b"), 0u) << "it runs";
  EXPECT_EQ(store_->Touch("absent"), 0u);
  of_a.reset();
  EXPECT_EQ(store_->Touch("a"), 3u);
  EXPECT_EQ(wakes, 1);
  EXPECT_THAT(store_->WatchedWaiting("", 10), IsEmpty());
}

TEST_P(JobStoreTest, TheRingOfStatesIsBoundedAndTheLastIsAlwaysThere) {
  Add("a");
  for (int i = 0; i < 1000; ++i) store_->Update("a", [](JobSnapshot& job) { ++job.step; });
  const auto missed = Replay(*store_, "a", 1);
  EXPECT_LE(missed.size(), 64u);
  EXPECT_GE(missed.size(), 8u);
  EXPECT_EQ(missed.back().sequence, 1001u);
  for (size_t i = 1; i < missed.size(); ++i) {
    EXPECT_EQ(missed[i].sequence, missed[i - 1].sequence + 1);
  }
}

}  // namespace
}  // namespace denoised
