// What a run leaves behind: states, events, errors, artifacts, fingerprints, counts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

#include "backends/cpu_isa.h"
#include "runtime/loaders/sha256.h"
#include "runtime/version.h"
#include "tests/runtime/fake_engine.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;
using testing::StartsWith;
using testing::UnorderedElementsAre;

TEST(EngineRun, AJobGoesThroughItsStagesToSuccess) {
  FakeEngine fake;
  const std::string id = fake.Submit("a job", [](auto& r) { r.formats = {ArtifactFormat::kNpy}; });
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_EQ(job.step, 3);
  EXPECT_FALSE(job.error);
  EXPECT_TRUE(job.started_at && job.finished_at);
  std::vector<JobStage> stages;
  for (const auto& [stage, seconds] : job.stage_seconds) {
    stages.push_back(stage);
    EXPECT_GE(seconds, 0);
  }
  EXPECT_THAT(stages, ElementsAre(JobStage::kTextEncode, JobStage::kDenoise, JobStage::kDecode,
                                  JobStage::kEncode));
  EXPECT_EQ(fake.model.live_runs, 0);
}

TEST(EngineRun, LatentsAloneNeedNoDecoding) {
  FakeEngine fake;
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("latents only"));
  EXPECT_EQ(fake.model.finish.arrivals(), 0);
  EXPECT_THAT(job.stage_seconds, SizeIs(3));
}

TEST(EngineRun, StepsAndAnEstimateAreSeenWhileItRuns) {
  FakeEngine fake;
  fake.model.steps.Close();
  const std::string id = fake.Submit("a job");
  fake.model.steps.Allow(2);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(3));
  const JobSnapshot job = fake.Get(id);
  EXPECT_EQ(job.state, JobState::kRunning);
  EXPECT_EQ(job.stage, JobStage::kDenoise);
  EXPECT_EQ(job.step, 2);
  ASSERT_TRUE(job.eta_seconds);
  EXPECT_GE(*job.eta_seconds, 0);
}

TEST(EngineRun, SequenceNumbersGrowByOneAndEndWithTheTerminalState) {
  FakeEngine fake;
  fake.model.steps.Close();
  fake.Submit("blocker");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  const std::string id = fake.Submit("watched");
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  const std::vector<JobSnapshot> seen = fake.store->History(id);
  for (size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].sequence, i + 1);
    EXPECT_EQ(IsTerminal(seen[i].state), i + 1 == seen.size()) << "event " << i + 1;
    if (i > 0) {
      EXPECT_GE(seen[i].state, seen[i - 1].state);
      EXPECT_GE(seen[i].step, seen[i - 1].step);
    }
  }
  EXPECT_GE(seen.size(), 10u);
  EXPECT_EQ(fake.engine->Cancel(id), Engine::CancelResult::kAlreadyFinished);
  EXPECT_EQ(fake.Get(id).sequence, seen.size());
}

struct Failure {
  const char* name;
  std::function<void()> raise;
  StatusCode code;
  std::string reason, message;
};

class EngineFailure : public testing::TestWithParam<Failure> {};

TEST_P(EngineFailure, AFailedStepFailsItsJobAndTheNextJobSucceeds) {
  FakeEngine fake;
  fake.model.on_step = [](const RunRequest& run, int64_t step) {
    if (run.prompt == "bad" && step == 1) GetParam().raise();
  };
  const std::string bad = fake.Submit("bad"), good = fake.Submit("good");
  const JobSnapshot job = fake.AwaitEnd(bad);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.step, 1);
  ASSERT_TRUE(job.error);
  EXPECT_EQ(job.error->code, GetParam().code);
  EXPECT_EQ(job.error->reason, GetParam().reason);
  EXPECT_EQ(job.error->message, GetParam().message);
  EXPECT_THAT(job.artifacts, IsEmpty());
  EXPECT_THAT(job.receipt.entries, Not(IsEmpty())) << "what ran until then is on the receipt";
  EXPECT_EQ(fake.AwaitEnd(good).state, JobState::kSucceeded);
  EXPECT_EQ(fake.model.live_runs, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Throwing, EngineFailure,
    testing::Values(
        Failure{"AnError",
                [] { throw Error(StatusCode::kFailedPrecondition, "no", "where", "WHY"); },
                StatusCode::kFailedPrecondition, "WHY", "no"},
        Failure{"NonFiniteLatents",
                [] { throw Error(StatusCode::kInternal, "NaN at step 1", "", "NON_FINITE"); },
                StatusCode::kInternal, "NON_FINITE", "NaN at step 1"},
        Failure{"NoMemory", [] { throw std::bad_alloc(); }, StatusCode::kResourceExhausted,
                "MEMORY", "out of memory"},
        Failure{"NoMemoryInLibTorch",
                [] {
                  throw std::runtime_error(
                      "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't "
                      "allocate memory: you tried to allocate 1 bytes.\nframe #0: at::empty");
                },
                StatusCode::kResourceExhausted, "MEMORY",
                "out of memory: [enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: "
                "can't allocate memory: you tried to allocate 1 bytes."},
        Failure{"NoMemoryOnADevice",
                [] { throw std::runtime_error("CUDA out of memory. Tried to allocate 2 GiB."); },
                StatusCode::kResourceExhausted, "MEMORY",
                "out of memory: CUDA out of memory. Tried to allocate 2 GiB."},
        Failure{"ALibTorchErrorKeepsItsFirstLine",
                [] { throw std::runtime_error("mat1 and mat2 differ\nframe #0: at::addmm"); },
                StatusCode::kInternal, "INTERNAL", "mat1 and mat2 differ"},
        Failure{"SomethingThatIsNoException", [] { throw 42; }, StatusCode::kInternal, "INTERNAL",
                "an exception of an unknown type"}),
    [](const auto& info) { return info.param.name; });

TEST(EngineRun, AFailureInEachStageIsTheJobsOwn) {
  FakeEngine fake;
  fake.model.on_begin = [](const RunRequest& run) {
    if (run.prompt == "begin") throw Error(StatusCode::kInternal, "in begin");
  };
  fake.model.on_finish = [](const RunRequest& run) {
    if (run.prompt == "finish") throw std::runtime_error("in finish");
  };
  const auto npy = [](auto& r) { r.formats = {ArtifactFormat::kNpy}; };
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("begin", npy)).error->message, "in begin");
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("finish", npy)).error->message, "in finish");
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("fine", npy)).state, JobState::kSucceeded);
}

TEST(EngineRun, ArtifactsArePresentOnceEachAndHashed) {
  FakeEngine fake;
  const std::string id = fake.Submit("artifacts", [](auto& r) {
    r.formats = {ArtifactFormat::kNpy, ArtifactFormat::kSafetensors, ArtifactFormat::kNpy};
  });
  const JobSnapshot job = fake.AwaitEnd(id);
  ASSERT_THAT(job.artifacts, SizeIs(2));
  for (const ArtifactInfo& info : job.artifacts) {
    const auto artifact = fake.engine->jobs().GetArtifact(id, info.format);
    ASSERT_TRUE(artifact) << info.name;
    EXPECT_EQ(artifact->size(), info.size_bytes);
    EXPECT_EQ(Sha256Hex(ReadAll(*artifact)), info.sha256);
    EXPECT_EQ(info.name, "video." + std::string(ArtifactFormatName(info.format)));
  }
  EXPECT_FALSE(fake.engine->jobs().GetArtifact(id, ArtifactFormat::kMp4));
}

TEST(EngineRun, AFingerprintNamesWhatMakesThePixels) {
  FakeEngine fake;
  const auto fingerprint = [&](std::function<void(GenerationRequest&)> edit) {
    const JobSnapshot job = fake.AwaitEnd(fake.Submit("a cat", std::move(edit)));
    EXPECT_EQ(job.state, JobState::kSucceeded);
    EXPECT_THAT(job.receipt.fingerprint, SizeIs(64));
    return job.receipt.fingerprint;
  };
  const std::string first = fingerprint({});
  EXPECT_EQ(fingerprint({}), first);
  EXPECT_EQ(fingerprint([](auto& r) { r.fps = 30; }), first) << "the pixels are the same";
  EXPECT_NE(fingerprint([](auto& r) { r.seed = 8; }), first);
  EXPECT_NE(fingerprint([](auto& r) { r.prompt = "a dog"; }), first);
  EXPECT_NE(fingerprint([](auto& r) { r.negative_prompt = "blurry"; }), first);
  EXPECT_NE(fingerprint([](auto& r) { r.guidance_scale = 5.000001; }), first);
  EXPECT_NE(fingerprint([](auto& r) { r.num_inference_steps = 4; }), first);
  EXPECT_NE(fingerprint([](auto& r) { r.attention.backend = AttnBackend::kReference; }), first);
  const auto with_latents = [](const char* bytes) {
    return [bytes](GenerationRequest& r) { r.latents = HostTensor{DType::kFloat32, {1}, bytes}; };
  };
  EXPECT_NE(fingerprint(with_latents("abcd")), fingerprint(with_latents("abce")));
}

TEST(EngineRun, TheReceiptNamesModelDeviceAndVersions) {
  FakeEngine fake;
  const Receipt receipt = fake.AwaitEnd(fake.Submit("a job")).receipt;
  EXPECT_EQ(receipt.weights_digest, "digest of fake");
  EXPECT_EQ(receipt.model_digest, "model digest of fake");
  EXPECT_EQ(receipt.device, "an invented CPU");
  EXPECT_EQ(receipt.dtype, "float32");
  EXPECT_EQ(receipt.version, Version());
  EXPECT_THAT(receipt.kernels, StartsWith(KernelIdentity() + " vae=float32 threads="));
  EXPECT_THAT(receipt.torch_version, HasSubstr("2."));
}

TEST(EngineRun, TheObserverCountsWhatHappened) {
  FakeEngine fake;
  fake.model.on_step = [](const RunRequest& run, int64_t) {
    if (run.prompt == "bad") throw Error(StatusCode::kInternal, "bad");
  };
  fake.Submit("good");
  fake.Submit("bad");
  ASSERT_TRUE(fake.WaitIdle());
  fake.model.steps.Close();
  const int64_t arrivals = fake.model.steps.arrivals();
  fake.Submit("running");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(arrivals + 1));
  fake.engine->Cancel(fake.Submit("queued"));
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_EQ(fake.observer.started, 3);
  EXPECT_EQ(fake.observer.negative_waits, 0);
  EXPECT_EQ(fake.observer.steps, 6) << "steps that threw are not counted";
  EXPECT_EQ(fake.observer.finished[JobState::kSucceeded], 2);
  EXPECT_EQ(fake.observer.finished[JobState::kFailed], 1);
  EXPECT_EQ(fake.observer.finished[JobState::kCancelled], 1);
  EXPECT_THAT(fake.observer.stages,
              UnorderedElementsAre(JobStage::kTextEncode, JobStage::kDenoise, JobStage::kEncode,
                                   JobStage::kTextEncode, JobStage::kTextEncode, JobStage::kDenoise,
                                   JobStage::kEncode));
}

// Prompts are private: what is logged about a job is its id and its end.
TEST(EngineRun, PromptsAreNotLogged) {
  FakeEngine fake;
  fake.model.on_step = [](const RunRequest& run, int64_t) {
    if (run.prompt == "another secret") throw Error(StatusCode::kInternal, "broken");
  };
  const std::string id = fake.Submit("a secret wish");
  fake.Submit("another secret");
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_TRUE(fake.logger.Flush(std::chrono::seconds(20)));
  std::rewind(fake.log_stream);
  std::string log(1 << 16, '\0');
  log.resize(std::fread(log.data(), 1, log.size(), fake.log_stream));
  EXPECT_THAT(log, AllOf(HasSubstr(id), HasSubstr("broken"), Not(HasSubstr("secret"))));
}

TEST(EngineRun, OldJobsAreForgottenAndRunningOnesNever) {
  EngineOptions options;
  options.max_finished_jobs = 2;
  options.policy = EngineOptions::Policy::kFifo;
  options.batching = false;
  FakeEngine fake(options);
  std::vector<std::string> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(fake.Submit("job " + std::to_string(i)));
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_FALSE(fake.engine->jobs().Get(ids[0]));
  EXPECT_FALSE(fake.engine->jobs().Get(ids[1]));
  EXPECT_TRUE(fake.engine->jobs().Get(ids[2]));
  EXPECT_TRUE(fake.engine->jobs().Get(ids[3]));
  EXPECT_EQ(fake.engine->Cancel(ids[0]), Engine::CancelResult::kNotFound);
}

}  // namespace
}  // namespace denoised
