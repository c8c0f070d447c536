// What a server that is short of memory does at its doors: it says so, refuses, sends watchers away
// and takes them back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <thread>

#include "tests/eventually.h"
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using Code = grpc::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr int64_t kMiB = int64_t{1} << 20;

class PressureTest : public ServerFixture {
 protected:
  void Say(MemoryStep step) {
    MemoryPressure pressure;
    pressure.step = step;
    pressure.taken_bytes = 95 * kMiB;
    pressure.room_bytes = 100 * kMiB;
    pressure.fraction = step == MemoryStep::kNone ? 0.5 : 0.95;
    pressure.refused_works = 3;
    engine_->SayPressure(pressure);
  }

  // A stream that has read the job's first state.
  struct Watcher {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::Job>> reader;
    v1::Job job;
  };
  std::unique_ptr<Watcher> Watch(const std::string& id, uint64_t after = 0) {
    auto watcher = std::make_unique<Watcher>();
    v1::WatchJobRequest request;
    request.set_job_id(id);
    request.set_after_sequence(after);
    watcher->reader = generation_->WatchJob(&watcher->context, request);
    return watcher;
  }

  // A line of the metrics: what a client has seen is counted a little later.
  bool Shows(const std::string& line) {
    return http_.Get("/metrics")->body.find(line + "\n") != std::string::npos;
  }

  httplib::Client http_{"http://" + server_->http_address()};
};

TEST_F(PressureTest, ReadinessHealthAndMetricsSayIt) {
  EXPECT_TRUE(Eventually([&] { return http_.Get("/readyz")->status == 200; }));
  EXPECT_THAT(http_.Get("/metrics")->body,
              HasSubstr("denoised_memory_shed_total{what=\"work\"} 0"));
  Say(MemoryStep::kNoNewWork);
  const auto answer = http_.Get("/readyz");
  EXPECT_EQ(answer->status, 503);
  EXPECT_THAT(answer->body,
              AllOf(StartsWith("MEMORY: "), HasSubstr("95 MiB"), HasSubstr("100 MiB")));
  EXPECT_EQ(http_.Get("/healthz")->status, 200) << "a restart would help nobody";
  EXPECT_THAT(http_.Get("/metrics")->body,
              AllOf(HasSubstr("denoised_memory_pressure 0.95\n"),
                    HasSubstr("denoised_memory_shed_total{what=\"work\"} 3\n")));
  Say(MemoryStep::kNone);
  EXPECT_TRUE(Eventually([&] { return http_.Get("/readyz")->status == 200; }));
}

TEST_F(PressureTest, WatchersAreSentAwayTheOldestFirstAndComeBack) {
  const std::string id = SubmitPrompt("p");
  std::vector<std::unique_ptr<Watcher>> watchers;
  for (int i = 0; i < 10; ++i) {
    watchers.push_back(Watch(id));
    ASSERT_TRUE(watchers.back()->reader->Read(&watchers.back()->job));
  }
  Say(MemoryStep::kNoNewWork);
  const int looks = engine_->pressure_asked + 6;  // two a tick
  while (engine_->pressure_asked < looks) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_THAT(http_.Get("/metrics")->body,
              HasSubstr("denoised_memory_shed_total{what=\"watchers\"} 0\n"))
      << "not at the first step";

  Say(MemoryStep::kShedWatchers);
  Watcher& oldest = *watchers.front();
  const uint64_t seen = oldest.job.sequence();
  ASSERT_FALSE(oldest.reader->Read(&oldest.job));
  const grpc::Status left = oldest.reader->Finish();
  EXPECT_EQ(left.error_code(), Code::UNAVAILABLE);
  EXPECT_EQ(Reason(left), "MEMORY");
  EXPECT_GT(Find<google::rpc::RetryInfo>(left).retry_delay().seconds(), 0);
  EXPECT_TRUE(oldest.context.GetServerTrailingMetadata().contains("grpc-retry-pushback-ms"));
  const grpc::Status too_early = Watch(id)->reader->Finish();
  EXPECT_EQ(too_early.error_code(), Code::UNAVAILABLE);
  EXPECT_EQ(Reason(too_early), "MEMORY");

  Say(MemoryStep::kNone);
  engine_->Change(id, [](JobSnapshot& job) { job.state = JobState::kRunning; });
  Watcher& newest = *watchers.back();
  EXPECT_TRUE(newest.reader->Read(&newest.job)) << "not all had to go";
  const auto back = Watch(id, seen);
  ASSERT_TRUE(back->reader->Read(&back->job));
  EXPECT_EQ(back->job.sequence(), seen + 1) << "it has missed nothing";
  EXPECT_EQ(back->job.state(), v1::RUNNING);
  EXPECT_TRUE(
      Eventually([&] { return !Shows("denoised_memory_shed_total{what=\"watchers\"} 0"); }));
  for (auto& watcher : watchers) watcher->context.TryCancel();
  back->context.TryCancel();
}

TEST_F(PressureTest, InTheEndAllWatchersGo) {
  const std::string id = SubmitPrompt("p");
  std::vector<std::unique_ptr<Watcher>> watchers;
  for (int i = 0; i < 10; ++i) watchers.push_back(Watch(id));
  for (auto& watcher : watchers) ASSERT_TRUE(watcher->reader->Read(&watcher->job));
  Say(MemoryStep::kShedWatchers);
  for (auto& watcher : watchers) {
    ASSERT_FALSE(watcher->reader->Read(&watcher->job));
    EXPECT_EQ(watcher->reader->Finish().error_code(), Code::UNAVAILABLE);
  }
  EXPECT_TRUE(
      Eventually([&] { return Shows("denoised_memory_shed_total{what=\"watchers\"} 10"); }));
}

TEST_F(PressureTest, AWatcherThatReadsNothingIsDropped) {
  const std::string id = SubmitPrompt(std::string(60'000, 'p'));
  const auto stuck = Watch(id);
  // Until its window is full and a message of 60 kB stays on its way.
  for (int i = 0; i < 400; ++i) {
    engine_->Change(id, [&](JobSnapshot& job) { job.step = i; });
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  Say(MemoryStep::kShedWatchers);
  EXPECT_TRUE(Eventually([&] {
    return Shows("denoised_rpc_seconds_count{code=\"CANCELLED\",method=\"WatchJob\"} 1");
  }));
  EXPECT_TRUE(Eventually([&] { return Shows("denoised_memory_shed_total{what=\"watchers\"} 1"); }));
}

TEST_F(PressureTest, NewConnectionsAreClosedAndOldOnesServe) {
  const std::string id = SubmitPrompt("p");
  Say(MemoryStep::kRefuseConnections);
  v1::ListModelsResponse models;
  const auto fresh = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return Call(v1::ModelService::NewStub(MakeChannel(server_->address())),
                &v1::ModelService::Stub::ListModels, {}, &models);
  };
  // The step is taken within the server's next look.
  grpc::Status refused = fresh();
  for (int i = 0; i < 200 && refused.ok(); ++i) refused = fresh();
  EXPECT_EQ(refused.error_code(), Code::UNAVAILABLE);
  v1::GetJobRequest request;
  request.set_job_id(id);
  v1::Job job;
  EXPECT_TRUE(Call(generation_, &v1::GenerationService::Stub::GetJob, request, &job).ok());
  const std::string page = http_.Get("/metrics")->body;
  for (const char* zero : {"denoised_connections_refused_total{listener=\"public\"} 0\n",
                           "denoised_memory_shed_total{what=\"connections\"} 0\n"}) {
    EXPECT_THAT(page, Not(HasSubstr(zero)));
  }
  v1::ListLeasesResponse leases;
  EXPECT_TRUE(Call(v1::AdminService::NewStub(MakeChannel(server_->admin_address())),
                   &v1::AdminService::Stub::ListLeases, {}, &leases)
                  .ok())
      << "operators get in";
  Say(MemoryStep::kNone);
  grpc::Status taken = fresh();
  for (int i = 0; i < 200 && !taken.ok(); ++i) taken = fresh();
  EXPECT_TRUE(taken.ok()) << taken.error_message();
}

}  // namespace
}  // namespace denoised
