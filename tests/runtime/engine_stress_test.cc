// Many clients at once against one engine; what must hold however their calls fall.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <set>
#include <thread>

#include "runtime/measured_table.h"
#include "tests/runtime/fake_engine.h"
#include "tests/runtime/leases.h"

namespace denoised {
namespace {

constexpr int kClients = 4;
constexpr int kJobsPerClient = 150;

EngineOptions RoomyOptions() {
  EngineOptions options;
  options.max_queued_jobs = 32;
  options.max_queued_denoise_calls = 16;
  options.max_finished_jobs = 100000;
  return options;
}

// A client that keeps every id it was given and whether a cancel of it was accepted.
struct Client {
  std::vector<std::string> ids;
  std::set<std::string> cancels_accepted;
  struct Watched {
    std::shared_ptr<std::atomic<uint64_t>> wakes;
    uint64_t since = 0;  // a sequence number that the job had once the watcher was there
  };
  std::map<std::string, Watched> watched;
  std::vector<std::shared_ptr<void>> handles;
  int64_t refused = 0;
};

struct DenoiseCount {
  std::atomic<int64_t> sent{0}, answered{0}, served{0}, cancelled{0}, refused{0};
};

GenerationRequest RandomRequest(std::mt19937& random) {
  GenerationRequest request = SmallRequest("stress");
  request.seed = random() % 1000;
  request.num_inference_steps = 1 + random() % 4;
  if (random() % 3 == 0) request.attention.backend = AttnBackend::kSageAttn;
  if (random() % 4 == 0) request.formats = {ArtifactFormat::kNpy};
  if (random() % 10 == 0) request.prompt = "bad";
  return request;
}

void SubmitOne(FakeEngine& fake, Client& client, std::mt19937& random) {
  for (;;) {
    const auto result = fake.engine->Submit(RandomRequest(random));
    if (const auto* job = std::get_if<JobSnapshot>(&result)) {
      auto wakes = std::make_shared<std::atomic<uint64_t>>(0);
      client.handles.push_back(fake.engine->jobs().Watch(job->id, [wakes] { ++*wakes; }));
      client.watched[job->id] = {wakes, fake.Get(job->id).sequence};
      client.ids.push_back(job->id);
      return;
    }
    EXPECT_EQ(std::get<Error>(result).reason(), "QUEUE_FULL");
    ++client.refused;
    std::this_thread::yield();
  }
}

void CancelOne(FakeEngine& fake, Client& client, std::mt19937& random) {
  const std::string& id = client.ids[random() % client.ids.size()];
  const auto result = fake.engine->Cancel(id);
  EXPECT_NE(result, Engine::CancelResult::kNotFound);
  if (result == Engine::CancelResult::kCancelling) client.cancels_accepted.insert(id);
}

void DenoiseOne(FakeEngine& fake, DenoiseCount& count, std::mt19937& random) {
  DenoiseRequest request;
  request.latents = {DType::kFloat32, {1}, "abcd"};
  auto cancel = std::make_shared<CancelToken>();
  ++count.sent;
  fake.engine->Denoise(request, cancel, [&count](Engine::DenoiseOutcome outcome) {
    ++count.answered;
    const auto* error = std::get_if<Error>(&outcome);
    ++(error == nullptr                          ? count.served
       : error->code() == StatusCode::kCancelled ? count.cancelled
                                                 : count.refused);
  });
  if (random() % 3 == 0) cancel->cancelled = true;
}

void ForceOne(FakeEngine& fake, std::mt19937& random) {
  const Lease force = AddForce(fake.engine->policy(),
                               random() % 2 ? AttnBackend::kReference : AttnBackend::kFlashAttn,
                               std::nullopt, "", "stress");
  EXPECT_FALSE(fake.engine->Explain({}).empty());
  EXPECT_TRUE(fake.engine->policy().Release(force.id));
}

void RunClient(FakeEngine& fake, Client& client, DenoiseCount& count, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < kJobsPerClient; ++i) {
    SubmitOne(fake, client, random);
    if (random() % 3 == 0) CancelOne(fake, client, random);
    if (random() % 3 == 0) DenoiseOne(fake, count, random);
    if (random() % 5 == 0) ForceOne(fake, random);
    if (random() % 8 == 0) fake.engine->jobs().List(JobState::kQueued, 10, "");
    if (random() % 8 == 0) fake.engine->queue_depth();
  }
}

void CheckHistory(const std::vector<JobSnapshot>& history) {
  for (size_t i = 0; i < history.size(); ++i) {
    EXPECT_EQ(history[i].sequence, i + 1) << "no gap";
    EXPECT_EQ(IsTerminal(history[i].state), i + 1 == history.size()) << "one terminal state, last";
    if (i == 0) continue;
    EXPECT_GE(history[i].state, history[i - 1].state) << "states only move forward";
    EXPECT_GE(history[i].step, history[i - 1].step) << "so do steps";
  }
}

// The rows of a role follow each other without gap or overlap and cover the steps that ran.
void CheckReceipt(const JobSnapshot& job) {
  int64_t next = 0;
  for (const ReceiptEntry& row : job.receipt.entries) {
    if (row.role != AttentionRole::kSelf) continue;
    EXPECT_EQ(row.first_step, next);
    EXPECT_EQ(row.calls, 2u * static_cast<uint64_t>(row.last_step - row.first_step + 1));
    next = row.last_step + 1;
  }
  if (job.state == JobState::kSucceeded) {
    EXPECT_EQ(next, job.num_steps);
  }
}

void CheckJob(FakeEngine& fake, const Client& client, const std::string& id) {
  SCOPED_TRACE(id);
  const std::vector<JobSnapshot> history = fake.store->History(id);
  CheckHistory(history);
  const JobSnapshot& job = history.back();
  CheckReceipt(job);
  EXPECT_EQ(job.error.has_value(), job.state != JobState::kSucceeded);
  EXPECT_EQ(job.artifacts.size(), job.state == JobState::kSucceeded ? 1u : 0u);
  if (client.cancels_accepted.contains(id)) {
    EXPECT_NE(job.state, JobState::kSucceeded) << "an accepted cancel is kept";
  } else {
    EXPECT_EQ(job.state, job.prompt == "bad" ? JobState::kFailed : JobState::kSucceeded);
  }
  const Client::Watched& watched = client.watched.at(id);
  EXPECT_GE(*watched.wakes, history.size() - watched.since) << "a change that woke nobody";
  EXPECT_LT(*watched.wakes, history.size());
}

TEST(EngineStress, ManyClientsLoseNothing) {
  FakeEngine fake(RoomyOptions());
  fake.model.on_step = [](const RunRequest& run, int64_t) {
    if (run.prompt == "bad") throw std::runtime_error("bad");
  };
  std::vector<Client> clients(kClients);
  DenoiseCount count;
  std::vector<std::thread> threads;
  for (int i = 0; i < kClients; ++i) {
    threads.emplace_back([&, i] {
      RunClient(fake, clients[static_cast<size_t>(i)], count, static_cast<unsigned>(i) + 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(fake.WaitIdle());

  int64_t ended = 0;
  for (const Client& client : clients) {
    EXPECT_EQ(client.ids.size(), static_cast<size_t>(kJobsPerClient));
    for (const std::string& id : client.ids) CheckJob(fake, client, id);
  }
  for (const auto& [state, jobs] : fake.observer.finished) ended += jobs;
  EXPECT_EQ(ended, kClients * kJobsPerClient);
  EXPECT_EQ(count.answered, count.sent);
  EXPECT_EQ(count.served, fake.model.denoise_calls);
  EXPECT_EQ(fake.model.live_runs, 0);
  EXPECT_EQ(fake.engine->jobs().List(JobState::kQueued, 1, "").jobs.size(), 0u);
  EXPECT_EQ(fake.engine->jobs().List(JobState::kRunning, 1, "").jobs.size(), 0u);
}

// A watcher that reads the job each time it is woken sees the end, however fast the job ran.
TEST(EngineStress, NoWatcherMissesTheEnd) {
  FakeEngine fake(RoomyOptions());
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&] {
      for (int i = 0; i < 60; ++i) {
        const std::string id = fake.Submit("watched");
        EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

// A stop in full traffic: every job has ended and every call was answered once it returns.
TEST(EngineStress, ShutdownInFullTrafficLeavesNothingOpen) {
  for (unsigned round = 0; round < 20; ++round) {
    FakeEngine fake(RoomyOptions());
    DenoiseCount count;
    std::atomic<int64_t> accepted{0};
    std::vector<std::thread> clients;
    for (unsigned client = 0; client < kClients; ++client) {
      clients.emplace_back([&, seed = round * 10 + client] {
        std::mt19937 random(seed);
        for (int i = 0; i < 50; ++i) {
          const auto result = fake.engine->Submit(RandomRequest(random));
          if (std::holds_alternative<JobSnapshot>(result)) ++accepted;
          DenoiseOne(fake, count, random);
        }
      });
    }
    while (fake.model.steps_run < 5) std::this_thread::yield();
    fake.engine->Shutdown();
    for (std::thread& client : clients) client.join();
    EXPECT_EQ(count.answered, count.sent);
    int64_t stored = 0;
    for (const JobSnapshot& job : fake.engine->jobs().List(std::nullopt, 100000, "").jobs) {
      EXPECT_TRUE(IsTerminal(job.state));
      ++stored;
    }
    EXPECT_EQ(stored, accepted);
    EXPECT_EQ(fake.model.live_runs, 0);
  }
}

// The same measurements, some seconds later, with the backends' times passed round.
std::string PassedRound(const std::string& json, int later) {
  MeasuredTable table = MeasuredTable::Parse(json);
  for (const MeasuredGroup* had : table.All()) {
    MeasuredGroup group = *had;
    group.measured_at += std::chrono::seconds(later);
    for (size_t i = 0; i < group.rows.size(); ++i) {
      group.rows[i].seconds = had->rows[(i + 1) % group.rows.size()].seconds;
    }
    table.Put(std::move(group));
  }
  return table.ToJson();
}

void TuneSome(FakeEngine& fake, unsigned seed, std::atomic<int64_t>& begun,
              std::atomic<int64_t>& ended) {
  std::mt19937 random(seed);
  for (int i = 0; i < 15; ++i) {
    const auto cancel = std::make_shared<CancelToken>();
    ++begun;
    fake.engine->tuner().Tune(
        {.model = "", .lengths = {8}, .rows = {1}}, cancel, [](const TuneProgress&) {},
        [&](const std::optional<Error>&) { ++ended; });
    if (random() % 2 == 0) cancel->cancelled = true;
    if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// However the table changes, and whenever the engine ends: a job runs one backend from its first
// step to its last, and each tune ends once.
TEST(EngineStress, TunesAndImportsBesideJobsFlipNoChoiceAndEndOnce) {
  for (unsigned round = 0; round < 10; ++round) {
    EngineOptions options = RoomyOptions();
    options.tune_when_idle = true;
    FakeEngine fake(options);
    std::atomic<int64_t> begun{0}, ended{0};
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 2; ++i) {
      threads.emplace_back([&, i] { TuneSome(fake, round * 2 + i, begun, ended); });
      threads.emplace_back([&] {
        for (int job = 0; job < 25; ++job) {
          GenerationRequest request = SmallRequest("stress");
          request.num_inference_steps = 6;
          fake.engine->Submit(request);
        }
      });
    }
    threads.emplace_back([&] {
      for (int later = 1; later < 40; ++later) {
        fake.engine->tuner().Import(PassedRound(fake.engine->tuner().Export(), later), "stress");
        EXPECT_EQ(fake.engine->Explain({}).size(), 2u);
      }
    });
    while (fake.model.steps_run < 20) std::this_thread::yield();
    if (round % 2 == 0) fake.engine->Shutdown();
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(fake.WaitIdle());
    fake.engine->Shutdown();
    EXPECT_EQ(ended, begun);
    for (const JobSnapshot& job : fake.engine->jobs().List(std::nullopt, 100000, "").jobs) {
      std::set<AttnBackend> ran;
      for (const ReceiptEntry& entry : job.receipt.entries) {
        if (entry.role == AttentionRole::kSelf) ran.insert(entry.ran);
      }
      EXPECT_LE(ran.size(), 1u) << job.id;
    }
  }
}

}  // namespace
}  // namespace denoised
