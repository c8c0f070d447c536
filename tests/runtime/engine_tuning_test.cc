// The measured automatic choice through the engine: what jobs run, explanations, checkpoints, and
// measurements between other work.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/threads.h"
#include "runtime/version.h"
#include "tests/runtime/fake_engine.h"
#include "tests/runtime/measured.h"
#include "tests/temporary_folder.h"

namespace denoised {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

// How this engine calls its machine: of what it exports after a measurement.
MeasuredOn HereOf(FakeEngine& fake) {
  Promised<bool> ended;
  fake.engine->tuner().Tune(
      {.model = "", .lengths = {8}, .rows = {16}}, std::make_shared<CancelToken>(),
      [](const TuneProgress&) {}, [&](std::optional<Error> error) { ended.Set(!error); });
  EXPECT_TRUE(ended.Await() && ended.value());
  const MeasuredTable table = MeasuredTable::Parse(fake.engine->tuner().Export());
  EXPECT_GT(table.size(), 0u);
  return table.size() == 0 ? MeasuredOn{} : table.All().front()->on;
}

// A table where these are measured for self-attention, in this order.
std::string TableOf(const MeasuredOn& on, const FakeModel& model,
                    const std::vector<AttnBackend>& fastest_first, int64_t rows = 2) {
  std::vector<MeasuredRow> measured;
  for (const AttnBackend backend : fastest_first) {
    const bool exact = backend != AttnBackend::kSageAttn;
    measured.push_back({backend, 1.0 + static_cast<double>(measured.size()), exact ? 0 : 0.01});
  }
  MeasuredGroup group = GroupOf(on, KeyOf(model.specs[0], rows), measured);
  group.measured_at = std::chrono::system_clock::now() + std::chrono::hours(1);
  MeasuredTable table;
  table.Put(group);
  return table.ToJson();
}

std::vector<std::string> SelfRows(const JobSnapshot& job) {
  std::vector<std::string> rows;
  for (const ReceiptEntry& entry : job.receipt.entries) {
    if (entry.role != AttentionRole::kSelf) continue;
    rows.push_back(std::to_string(entry.first_step) + "-" + std::to_string(entry.last_step) + " " +
                   std::string(AttnBackendName(entry.ran)) + " " +
                   std::string(SelectionSourceName(entry.selection.granted.source)));
  }
  return rows;
}

Explanation ExplainSelf(FakeEngine& fake) { return fake.engine->Explain({}).front(); }

TEST(EngineTuning, WithoutMeasurementsTheRegistrysOrderStands) {
  FakeEngine fake;
  EXPECT_THAT(SelfRows(fake.AwaitEnd(fake.Submit("a job"))),
              ElementsAre("0-2 TORCH_SDPA automatic"));
  const Explanation self = ExplainSelf(fake);
  ASSERT_TRUE(self.measured);
  EXPECT_FALSE(self.measured->row);
  EXPECT_EQ(self.measured->note, "");
}

TEST(EngineTuning, AJobRunsTheFastestExactBackendThatWasMeasuredAndExplainNamesTheRow) {
  FakeEngine fake;
  const std::string table =
      TableOf(HereOf(fake), fake.model,
              {AttnBackend::kSageAttn, AttnBackend::kReference, AttnBackend::kTorchSdpa});
  const ImportedMeasurements imported = fake.engine->tuner().Import(table, "an operator");
  EXPECT_EQ(imported.taken, 1);
  EXPECT_EQ(imported.ignored, 0) << imported.note;
  EXPECT_THAT(SelfRows(fake.AwaitEnd(fake.Submit("a job"))),
              ElementsAre("0-2 REFERENCE automatic"));
  const Explanation self = ExplainSelf(fake);
  EXPECT_EQ(self.selection.granted.backend, AttnBackend::kReference);
  ASSERT_TRUE(self.measured && self.measured->row);
  EXPECT_EQ(self.measured->row->seconds, 2);
  EXPECT_THAT(ToText(self.measured->key), HasSubstr("5-8 queries, 5-8 keys, 2 rows"));
}

TEST(EngineTuning, AReceiptsReasonNamesTheMeasurementAndOutlivesTheServer) {
  const TemporaryFolder folder;
  EngineOptions options;
  options.state_dir = folder.path();
  std::string id;
  const std::string reason =
      "REFERENCE by automatic, the fastest of those measured: 1 s a call, error 0, for ";
  {
    FakeEngine fake(options);
    fake.engine->tuner().Import(TableOf(HereOf(fake), fake.model, {AttnBackend::kReference}),
                                "an operator");
    id = fake.Submit("a job");
    EXPECT_THAT(Reason(fake.AwaitEnd(id).receipt.entries[0]), HasSubstr(reason));
    EXPECT_THAT(ExplainSelf(fake).selection.Reason(), HasSubstr(reason));
  }
  FakeEngine next(options);
  EXPECT_THAT(Reason(next.engine->jobs().Get(id)->receipt.entries[0]), HasSubstr(reason));
}

TEST(EngineTuning, AutoErrorAdmitsABackendThatIsNotExact) {
  EngineOptions options;
  options.auto_error = 0.02;
  FakeEngine fake(options);
  fake.engine->tuner().Import(
      TableOf(HereOf(fake), fake.model, {AttnBackend::kSageAttn, AttnBackend::kReference}),
      "an operator");
  EXPECT_THAT(SelfRows(fake.AwaitEnd(fake.Submit("a job"))),
              ElementsAre("0-2 SAGE_ATTN automatic"));
  // What the layer's limits refuse is passed over, whatever was measured.
  fake.engine->tuner().Import(
      TableOf(HereOf(fake), fake.model, {AttnBackend::kFlashAttn, AttnBackend::kSageAttn}),
      "an operator");
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("another"));
  EXPECT_THAT(SelfRows(job), ElementsAre("0-2 SAGE_ATTN automatic"));
  EXPECT_THAT(job.receipt.entries[0].selection.refusals, SizeIs(1));
}

TEST(EngineTuning, AWishGoesBeforeWhatWasMeasured) {
  FakeEngine fake;
  fake.engine->tuner().Import(TableOf(HereOf(fake), fake.model, {AttnBackend::kReference}),
                              "an operator");
  const std::string id = fake.Submit(
      "a job", [](GenerationRequest& r) { r.attention.backend = AttnBackend::kSageAttn; });
  EXPECT_THAT(SelfRows(fake.AwaitEnd(id)), ElementsAre("0-2 SAGE_ATTN request"));
}

TEST(EngineTuning, RowsAreForCallsOfTheirNumberOfRows) {
  for (const auto device : {DeviceInfo::Type::kCpu, DeviceInfo::Type::kCuda}) {
    FakeEngine fake({}, true, 2, [&](FakeModel* model) { model->device = device; });
    const bool together = device == DeviceInfo::Type::kCpu;  // both passes of guidance
    const MeasuredOn here =
        together ? HereOf(fake)  // which nothing invented can measure on a GPU
                 : MeasuredOn{Version(), "a GPU", "cuda 0.0 libtorch=" + LibTorchVersion()};
    fake.engine->tuner().Import(
        TableOf(here, fake.model, {AttnBackend::kReference}, together ? 2 : 1), "an operator");
    const auto drawn = [&](double guidance) {
      return SelfRows(fake.AwaitEnd(fake.Submit(
          "a job", [&](GenerationRequest& request) { request.guidance_scale = guidance; })));
    };
    EXPECT_THAT(drawn(5), ElementsAre("0-2 REFERENCE automatic"));
    EXPECT_THAT(drawn(1),
                ElementsAre(together ? "0-2 TORCH_SDPA automatic" : "0-2 REFERENCE automatic"));
  }
}

TEST(EngineTuning, MeasurementsOfAnotherMachineAreKeptIgnoredAndNamed) {
  FakeEngine fake;
  MeasuredOn other = HereOf(fake);
  other.kernels = "own=avx9";
  const ImportedMeasurements imported = fake.engine->tuner().Import(
      TableOf(other, fake.model, {AttnBackend::kReference}), "an operator");
  EXPECT_EQ(imported.ignored, 1);
  EXPECT_THAT(imported.note, HasSubstr("another instruction set (own=avx9)"));
  const Explanation self = ExplainSelf(fake);
  EXPECT_EQ(self.selection.granted.backend, AttnBackend::kTorchSdpa);
  EXPECT_THAT(self.measured.value().note, HasSubstr("own=avx9"));
  EXPECT_THAT(fake.engine->tuner().Export(), HasSubstr("own=avx9"));
}

TEST(EngineTuning, AJobThatHasBegunKeepsItsChoiceAndTheNextOneHasTheNewOne) {
  FakeEngine fake;
  const MeasuredOn here = HereOf(fake);
  fake.model.steps.Close();
  const std::string id = fake.Submit("begun", [](auto& r) { r.num_inference_steps = 4; });
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  fake.engine->tuner().Import(TableOf(here, fake.model, {AttnBackend::kReference}), "an operator");
  ASSERT_TRUE(ExplainSelf(fake).measured.value().row);
  ExplainQuery about;
  about.job_id = id;
  const Explanation begun = fake.engine->Explain(about).front();
  EXPECT_EQ(begun.selection.granted.backend, AttnBackend::kTorchSdpa);
  EXPECT_FALSE(begun.measured.value().row) << "it began before there was one";
  fake.model.steps.Open();
  EXPECT_THAT(SelfRows(fake.AwaitEnd(id)), ElementsAre("0-3 TORCH_SDPA automatic"));
  EXPECT_THAT(SelfRows(fake.AwaitEnd(fake.Submit("next"))), ElementsAre("0-2 REFERENCE automatic"));
}

TEST(EngineTuning, ASuspendedJobGoesOnWithTheChoiceItBeganWith) {
  FakeEngine fake;
  const MeasuredOn here = HereOf(fake);
  fake.model.steps.Close();
  const std::string id = fake.Submit("aside", [](auto& r) { r.num_inference_steps = 5; });
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  EXPECT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Open();
  ASSERT_TRUE(fake.WaitIdle());
  fake.engine->tuner().Import(TableOf(here, fake.model, {AttnBackend::kReference}), "an operator");
  EXPECT_FALSE(fake.engine->Resume(id));
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_THAT(SelfRows(job), ElementsAre("0-4 TORCH_SDPA automatic"));
  EXPECT_EQ(fake.model.steps_run, 5) << "no step runs twice";
}

TEST(EngineTuning, AJobGoesOnAtTheNextStartWithTheChoiceItBeganWith) {
  const TemporaryFolder folder;
  const EngineOptions options = KeepingIn(folder.path());
  std::string id;
  {
    FakeEngine fake(options);
    const MeasuredOn here = HereOf(fake);
    fake.model.steps.Close();
    id = fake.Submit("moved", [](auto& r) { r.num_inference_steps = 6; });
    ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
    fake.engine->tuner().Import(TableOf(here, fake.model, {AttnBackend::kReference}),
                                "an operator");
    fake.model.steps.Allow(2);
    ASSERT_TRUE(fake.model.steps.AwaitArrival(3));
    fake.engine->Stop();
    fake.model.steps.Open();
    fake.engine->Shutdown();
  }
  FakeEngine next(options);
  const JobSnapshot job = next.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kSucceeded);
  EXPECT_THAT(SelfRows(job), ElementsAre("0-5 TORCH_SDPA automatic"));
  EXPECT_THAT(job.receipt.notes, testing::IsEmpty()) << "it was not begun again";
  EXPECT_THAT(SelfRows(next.AwaitEnd(next.Submit("fresh"))),
              ElementsAre("0-2 REFERENCE automatic"));
}

TEST(EngineTuning, TuneMeasuresWhatTheLayersListAndTellsOfEach) {
  FakeEngine fake;
  std::mutex mutex;
  std::vector<TuneProgress> told;
  Promised<bool> ended;
  fake.engine->tuner().Tune(
      {}, std::make_shared<CancelToken>(),
      [&](const TuneProgress& progress) {
        const std::lock_guard lock(mutex);
        told.push_back(progress);
      },
      [&](std::optional<Error> error) { ended.Set(!error); });
  ASSERT_TRUE(ended.Await());
  EXPECT_TRUE(ended.value());
  // Self lists five of which one refuses head size 128; cross two; each with one and two rows.
  ASSERT_THAT(told, SizeIs(2 * (5 + 2)));
  for (size_t i = 0; i < told.size(); ++i) {
    EXPECT_EQ(told[i].done, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(told[i].total, 14);
    EXPECT_EQ(told[i].seconds.has_value(), told[i].backend != AttnBackend::kFlashAttn);
    EXPECT_EQ(told[i].why_not.empty(), told[i].seconds.has_value());
  }
  EXPECT_EQ(MeasuredTable::Parse(fake.engine->tuner().Export()).size(), 4u);
  EXPECT_TRUE(ExplainSelf(fake).measured.value().row);
}

TEST(EngineTuning, ATuneIsRefusedByItsField) {
  FakeEngine fake;
  const auto refusal = [&](TuneQuery query) -> std::string {
    Promised<std::string> ended;
    fake.engine->tuner().Tune(
        std::move(query), std::make_shared<CancelToken>(), [](const TuneProgress&) {},
        [&](std::optional<Error> error) { ended.Set(error ? error->field() : "taken"); });
    EXPECT_TRUE(ended.Await());
    return ended.value();
  };
  EXPECT_EQ(refusal({.model = "nobody"}), "model");
  EXPECT_EQ(refusal({.model = "", .lengths = {0}}), "lengths");
  EXPECT_EQ(refusal({.model = "", .lengths = {TuneQuery::kLongest + 1}}), "lengths");
  EXPECT_EQ(refusal({.model = "", .lengths = std::vector<int64_t>(33, 8)}), "lengths");
  EXPECT_EQ(refusal({.model = "", .lengths = {}, .rows = {17}}), "rows");
  std::vector<int64_t> many;  // each a kind for self, and one for cross
  for (int64_t length = 1; length <= TuneQuery::kLongest; length *= 2) many.push_back(length);
  EXPECT_EQ(refusal({.model = "", .lengths = many, .rows = {1, 2, 4}}), "lengths");
}

// A tune that is in the middle of a measurement until the test lets it go on.
class HeldTune {
 public:
  explicit HeldTune(FakeEngine* fake) {
    fake->model.backends.sdpa.on_forward = [this](const AttentionInputs&) { gate_.Pass(); };
    fake->engine->tuner().Tune(
        {.model = "", .lengths = {}, .rows = {1}}, cancel, [this](const TuneProgress&) { ++told; },
        [this](std::optional<Error> error) { ended.Set(error ? error->reason() : "done"); });
    EXPECT_TRUE(gate_.AwaitArrival(1));
  }
  void GoOn() { gate_.Open(); }

  std::atomic<int64_t> told{0};
  const std::shared_ptr<CancelToken> cancel = std::make_shared<CancelToken>();
  Promised<std::string> ended;

 private:
  Gate gate_{false};
};

TEST(EngineTuning, JobsHaveAUnitBetweenAnyTwoMeasurements) {
  FakeEngine fake;
  HeldTune tune(&fake);
  EXPECT_EQ(tune.told, 1) << "FLASH_ATTN, which refuses";
  std::vector<int64_t> told_by_step;
  fake.model.on_step = [&](const RunRequest&, int64_t) { told_by_step.push_back(tune.told); };
  const std::string id = fake.Submit("meanwhile");
  tune.GoOn();
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
  ASSERT_TRUE(tune.ended.Await());
  EXPECT_EQ(tune.ended.value(), "done");
  EXPECT_EQ(tune.told, 7);
  ASSERT_THAT(told_by_step, SizeIs(3));
  for (int64_t step = 0; step < 3; ++step) {
    EXPECT_LE(told_by_step[static_cast<size_t>(step)], 3 + step) << "one for each unit at most";
  }
}

TEST(EngineTuning, ACancelledTuneEndsAndKeepsNoHalfOfAKind) {
  FakeEngine fake;
  HeldTune tune(&fake);
  tune.cancel->cancelled = true;
  tune.GoOn();
  ASSERT_TRUE(tune.ended.Await());
  EXPECT_EQ(tune.ended.value(), "CANCELLED");
  EXPECT_EQ(MeasuredTable::Parse(fake.engine->tuner().Export()).size(), 0u);
}

TEST(EngineTuning, TunesAreServedInTurnAndWhoIsCancelledDoesNotWait) {
  FakeEngine fake;
  HeldTune tune(&fake);
  const auto cancel = std::make_shared<CancelToken>();
  Promised<std::string> second, third;
  const auto queue = [&](std::shared_ptr<CancelToken> token, Promised<std::string>* ended) {
    fake.engine->tuner().Tune(
        {.model = "", .lengths = {64}, .rows = {1}}, std::move(token), [](const TuneProgress&) {},
        [&tune, ended](std::optional<Error> e) {
          ended->Set((e ? e->reason() : "done") + " after " + std::to_string(tune.ended.times()));
        });
  };
  queue(cancel, &second);
  queue(std::make_shared<CancelToken>(), &third);
  cancel->cancelled = true;
  tune.GoOn();
  ASSERT_TRUE(second.Await() && third.Await());
  EXPECT_EQ(second.value(), "CANCELLED after 0");
  EXPECT_EQ(third.value(), "done after 1");
}

TEST(EngineTuning, ADrainEndsTunesWhileJobsGoOn) {
  FakeEngine fake;
  HeldTune tune(&fake);
  const std::string id = fake.Submit("a job");
  fake.engine->Drain();
  ASSERT_TRUE(tune.ended.Await());
  EXPECT_EQ(tune.ended.value(), "DRAINING");
  tune.GoOn();
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
  EXPECT_EQ(MeasuredTable::Parse(fake.engine->tuner().Export()).size(), 0u);
}

TEST(EngineTuning, EachChangeOfTheTableIsInTheAudit) {
  FakeEngine fake;
  const MeasuredOn here = HereOf(fake);
  Promised<bool> ended;
  fake.engine->tuner().Tune(
      {.model = "", .lengths = {8}, .rows = {16}, .who = "an operator"},
      std::make_shared<CancelToken>(), [](const TuneProgress&) {},
      [&](std::optional<Error> error) { ended.Set(!error); });
  ASSERT_TRUE(ended.Await());
  fake.engine->tuner().Import(TableOf(here, fake.model, {AttnBackend::kReference}), "another");
  std::vector<AuditEntry> told;
  for (const AuditEntry& entry : fake.engine->audit().ReadAfter(0, 100)) {
    if (entry.what == "tune" && !entry.who.empty()) told.push_back(entry);
  }
  ASSERT_THAT(told, SizeIs(3)) << "self, cross, the import";
  EXPECT_EQ(told[0].who, "an operator");
  EXPECT_THAT(told[0].subject, HasSubstr("5-8 queries, 5-8 keys, 9-16 rows"));
  EXPECT_THAT(told[0].old_value, HasSubstr(" s a call, error 0"));
  EXPECT_THAT(told[0].new_value, HasSubstr(" s a call, error 0"));
  EXPECT_EQ(told[2].who, "another");
  EXPECT_EQ(told[2].subject, "import");
  EXPECT_EQ(told[2].new_value, "1 kinds of calls");
}

TEST(EngineTuning, AnImportThatIsNotAsWrittenChangesNothing) {
  FakeEngine fake;
  const std::string good = TableOf(HereOf(fake), fake.model, {AttnBackend::kReference});
  fake.engine->tuner().Import(good, "an operator");
  const std::string before = fake.engine->tuner().Export();
  std::string bad = good;
  bad.replace(bad.find("REFERENCE"), 9, "PREFERENCE");
  EXPECT_THROW(fake.engine->tuner().Import(bad, "an operator"), Error);
  EXPECT_EQ(fake.engine->tuner().Export(), before);
}

TEST(EngineTuning, TheEnginesEndEndsATuneOnce) {
  FakeEngine fake;
  HeldTune tune(&fake);
  fake.engine->Stop();
  ASSERT_TRUE(tune.ended.Await());
  EXPECT_EQ(tune.ended.value(), "DRAINING");
  tune.GoOn();
  fake.engine->Shutdown();
  EXPECT_EQ(tune.ended.times(), 1u);
  Promised<std::string> late;
  fake.engine->tuner().Tune(
      {}, tune.cancel, [](const TuneProgress&) {},
      [&](std::optional<Error> error) { late.Set(error->reason()); });
  EXPECT_EQ(late.value(), "DRAINING");
}

TEST(EngineTuning, WhenIdleWhatAJobFoundUnmeasuredIsMeasured) {
  EngineOptions options;
  options.tune_when_idle = true;
  FakeEngine fake(options);
  // Of cross-attention, which comes after self-attention.
  Promised<bool> cross;
  fake.model.backends.sdpa.on_forward = [&](const AttentionInputs& inputs) {
    if (inputs.key.size(1) == 32) cross.Set(true);
  };
  EXPECT_THAT(SelfRows(fake.AwaitEnd(fake.Submit("a job"))),
              ElementsAre("0-2 TORCH_SDPA automatic"));
  ASSERT_TRUE(cross.Await());
  EXPECT_TRUE(ExplainSelf(fake).measured.value().row);
  fake.engine->Shutdown();
}

TEST(EngineTuning, AJobWaitsForOneCallOfWhatIsMeasuredWhenIdleAndThatGoesOnLater) {
  EngineOptions options;
  options.tune_when_idle = true;
  FakeEngine fake(options);
  Gate calls(/*open=*/false);
  fake.model.backends.sdpa.on_forward = [&](const AttentionInputs&) { calls.Pass(); };
  fake.AwaitEnd(fake.Submit("a job"));
  ASSERT_TRUE(calls.AwaitArrival(1));
  const std::string id = fake.Submit("meanwhile");
  fake.model.steps.Close();
  calls.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(4));
  EXPECT_EQ(calls.arrivals(), 1);
  fake.model.steps.Open();
  EXPECT_EQ(fake.AwaitEnd(id).state, JobState::kSucceeded);
  EXPECT_TRUE(calls.AwaitArrival(2));
  calls.Open();
  fake.engine->Shutdown();
}

TEST(EngineTuning, OtherwiseNothingIsMeasuredUnasked) {
  FakeEngine fake;
  std::atomic<int64_t> calls{0};
  fake.model.backends.sdpa.on_forward = [&](const AttentionInputs&) { ++calls; };
  fake.AwaitEnd(fake.Submit("a job"));
  fake.AwaitEnd(fake.Submit("another"));
  ASSERT_TRUE(fake.WaitIdle());
  fake.engine->Shutdown();
  EXPECT_EQ(calls, 0);
}

}  // namespace
}  // namespace denoised
