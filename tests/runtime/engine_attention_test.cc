// Selection through the engine: requests, forces during a run, strict and prefer, receipts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/fake_engine.h"
#include "tests/runtime/leases.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

std::vector<ReceiptEntry> RowsOf(const JobSnapshot& job, AttentionRole role) {
  std::vector<ReceiptEntry> rows;
  for (const ReceiptEntry& entry : job.receipt.entries) {
    if (entry.role == role) rows.push_back(entry);
  }
  return rows;
}

std::function<void(GenerationRequest&)> Asking(AttnBackend backend,
                                               SelectionMode mode = SelectionMode::kPrefer) {
  return [=](GenerationRequest& request) {
    request.attention.backend = backend;
    request.attention.mode = mode;
  };
}

// What a row says, in short: "0-2 TORCH_SDPA automatic".
std::string Short(const ReceiptEntry& row) {
  return std::to_string(row.first_step) + "-" + std::to_string(row.last_step) + " " +
         std::string(AttnBackendName(row.ran)) + " " +
         std::string(SelectionSourceName(row.selection.granted.source));
}

std::vector<std::string> Short(const std::vector<ReceiptEntry>& rows) {
  std::vector<std::string> lines;
  for (const ReceiptEntry& row : rows) lines.push_back(Short(row));
  return lines;
}

// A job of 4 steps that stands in step `step` (0-based).
std::string StartAndStopIn(FakeEngine& fake, int64_t step,
                           std::function<void(GenerationRequest&)> edit = {}) {
  fake.model.steps.Close();
  const int64_t before = fake.model.steps.arrivals();
  const std::string id = fake.Submit("a job", [&](GenerationRequest& request) {
    request.num_inference_steps = 4;
    if (edit) edit(request);
  });
  fake.model.steps.Allow(step);
  EXPECT_TRUE(fake.model.steps.AwaitArrival(before + step + 1));
  return id;
}

TEST(EngineAttention, TheReceiptSaysWhatRanHowOftenAndWhatWasPassedOver) {
  FakeEngine fake;
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job"));
  const auto self = RowsOf(job, AttentionRole::kSelf);
  EXPECT_THAT(Short(self), ElementsAre("0-2 TORCH_SDPA automatic"));
  EXPECT_EQ(self[0].calls, 6u) << "two layers, three steps";
  EXPECT_DOUBLE_EQ(self[0].seconds.value(), 1.5);
  EXPECT_FALSE(self[0].asked);
  ASSERT_THAT(self[0].selection.refusals, SizeIs(1));
  EXPECT_EQ(self[0].selection.refusals[0].backend, AttnBackend::kFlashAttn);
  EXPECT_EQ(self[0].selection.refusals[0].reason, "takes head sizes up to 64, got 128");
  EXPECT_THAT(Short(RowsOf(job, AttentionRole::kCross)), ElementsAre("0-2 TORCH_SDPA automatic"));
  EXPECT_THAT(job.receipt.entries, SizeIs(2));
}

TEST(EngineAttention, ARequestedBackendRunsWhereTheLayerListsIt) {
  FakeEngine fake;
  const JobSnapshot job =
      fake.AwaitEnd(fake.Submit("a job", Asking(AttnBackend::kSageAttn, SelectionMode::kStrict)));
  const auto self = RowsOf(job, AttentionRole::kSelf);
  EXPECT_THAT(Short(self), ElementsAre("0-2 SAGE_ATTN request"));
  EXPECT_EQ(self[0].asked, AttnBackend::kSageAttn);
  const auto cross = RowsOf(job, AttentionRole::kCross);
  EXPECT_THAT(Short(cross), ElementsAre("0-2 TORCH_SDPA automatic"));
  ASSERT_THAT(cross[0].selection.refusals, SizeIs(1));
  EXPECT_THAT(cross[0].selection.refusals[0].reason, HasSubstr("cross"));
}

TEST(EngineAttention, APreferredBackendThatCannotServeFallsBackAndSaysSo) {
  FakeEngine fake;
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job", Asking(AttnBackend::kFlashAttn)));
  EXPECT_EQ(job.state, JobState::kSucceeded);
  const auto self = RowsOf(job, AttentionRole::kSelf);
  EXPECT_THAT(Short(self), ElementsAre("0-2 TORCH_SDPA automatic"));
  EXPECT_THAT(self[0].selection.Reason(), HasSubstr("FLASH_ATTN (request)"));
  ASSERT_TRUE(fake.WaitIdle());
  // Once and not once a step; and not for cross-attention, whose list is short by design.
  EXPECT_THAT(fake.observer.fallbacks,
              ElementsAre(std::tuple(AttnBackend::kFlashAttn, AttnBackend::kTorchSdpa,
                                     SelectionSource::kRequest)));
}

TEST(EngineAttention, AStrictRequestThatCannotBeServedIsRefusedAtSubmit) {
  FakeEngine fake;
  for (AttnBackend backend : {AttnBackend::kFlashAttn, AttnBackend::kCudnnAttn}) {
    GenerationRequest request = SmallRequest("strict");
    Asking(backend, SelectionMode::kStrict)(request);
    const auto result = fake.engine->Submit(request);
    ASSERT_TRUE(std::holds_alternative<Error>(result));
    const Error& error = std::get<Error>(result);
    EXPECT_EQ(error.code(), StatusCode::kFailedPrecondition);
    EXPECT_EQ(error.field(), "attention.backend");
    EXPECT_THAT(error.what(), HasSubstr(std::string(AttnBackendName(backend))));
  }
  EXPECT_THAT(fake.engine->jobs().List(std::nullopt, 10, "").jobs, IsEmpty());
}

TEST(EngineAttention, ParametersNeedABackendAndMustPleaseIt) {
  FakeEngine fake;
  const auto field = [&](std::optional<AttnBackend> backend, const char* parameters) {
    GenerationRequest request = SmallRequest("parameters");
    request.attention.backend = backend;
    request.attention.parameters_json = parameters;
    const auto result = fake.engine->Submit(request);
    const Error* error = std::get_if<Error>(&result);
    return error ? error->field() : "accepted";
  };
  EXPECT_EQ(field(std::nullopt, R"({"x": 1})"), "attention.parameters");
  EXPECT_EQ(field(std::nullopt, "{}"), "accepted") << "nothing is nobody's";
  EXPECT_EQ(field(AttnBackend::kReference, R"({"x": 1})"), "attention.parameters.x");
  EXPECT_EQ(field(AttnBackend::kSlidingTileAttn, "bad"), "attention.parameters");
  EXPECT_EQ(field(AttnBackend::kSlidingTileAttn, "good"), "accepted");
}

TEST(EngineAttention, AForceDuringARunSwitchesAtTheNextStep) {
  FakeEngine fake;
  const std::string id = StartAndStopIn(fake, 1, Asking(AttnBackend::kSageAttn));
  const Lease force =
      AddForce(fake.engine->policy(), AttnBackend::kReference, std::nullopt, "a trial", "operator");
  fake.model.steps.Open();
  const JobSnapshot job = fake.AwaitEnd(id);
  const auto self = RowsOf(job, AttentionRole::kSelf);
  ASSERT_THAT(Short(self), ElementsAre("0-1 SAGE_ATTN request", "2-3 REFERENCE force"));
  EXPECT_EQ(self[0].selection.granted.lease_id, "");
  EXPECT_EQ(self[1].selection.granted.lease_id, force.id);
  EXPECT_EQ(self[0].calls, 4u);
  EXPECT_EQ(self[1].calls, 4u);
  EXPECT_THAT(Short(RowsOf(job, AttentionRole::kCross)),
              ElementsAre("0-1 TORCH_SDPA automatic", "2-3 REFERENCE force"));
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.observer.switches, ElementsAre(SelectionSource::kForce));
}

TEST(EngineAttention, AReleasedForceGivesTheJobItsOwnWishBack) {
  FakeEngine fake;
  const Lease force =
      AddForce(fake.engine->policy(), AttnBackend::kReference, std::nullopt, "", "operator");
  const std::string id = StartAndStopIn(fake, 2, Asking(AttnBackend::kSageAttn));
  EXPECT_TRUE(fake.engine->policy().Release(force.id));
  fake.model.steps.Open();
  EXPECT_THAT(Short(RowsOf(fake.AwaitEnd(id), AttentionRole::kSelf)),
              ElementsAre("0-2 REFERENCE force", "3-3 SAGE_ATTN request"));
}

TEST(EngineAttention, AForceWithATtlEndsByItself) {
  FakeEngine fake;
  AddForce(fake.engine->policy(), AttnBackend::kReference, std::chrono::seconds(5), "", "operator");
  const std::string id = StartAndStopIn(fake, 1);
  fake.clock.Advance(std::chrono::milliseconds(4999));
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(3));
  fake.clock.Advance(std::chrono::milliseconds(1));
  fake.model.steps.Open();
  EXPECT_THAT(Short(RowsOf(fake.AwaitEnd(id), AttentionRole::kSelf)),
              ElementsAre("0-2 REFERENCE force", "3-3 TORCH_SDPA automatic"));
  EXPECT_THAT(fake.engine->policy().List(), IsEmpty());
}

TEST(EngineAttention, TheSameBackendFromAnotherSourceIsARowOfItsOwnButNoSwitch) {
  FakeEngine fake;
  const std::string id = StartAndStopIn(fake, 0, Asking(AttnBackend::kSageAttn));
  AddForce(fake.engine->policy(), AttnBackend::kSageAttn, std::nullopt, "", "operator");
  fake.model.steps.Open();
  EXPECT_THAT(Short(RowsOf(fake.AwaitEnd(id), AttentionRole::kSelf)),
              ElementsAre("0-0 SAGE_ATTN request", "1-3 SAGE_ATTN force"));
  ASSERT_TRUE(fake.WaitIdle());
  EXPECT_THAT(fake.observer.switches, IsEmpty());
}

TEST(EngineAttention, AForceThatCannotServeFailsAStrictJobMidRunWithEveryRefusal) {
  FakeEngine fake;
  const std::string id = StartAndStopIn(fake, 1, [&](GenerationRequest& request) {
    Asking(AttnBackend::kTorchSdpa, SelectionMode::kStrict)(request);
  });
  fake.model.backends.sdpa_refuses = true;
  AddForce(fake.engine->policy(), AttnBackend::kFlashAttn, std::nullopt, "", "operator");
  fake.model.steps.Open();
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->code, StatusCode::kFailedPrecondition);
  EXPECT_EQ(job.error->reason, "BACKEND_REFUSED");
  EXPECT_THAT(job.error->message,
              AllOf(HasSubstr("FLASH_ATTN (force): takes head sizes up to 64, got 128"),
                    HasSubstr("TORCH_SDPA (request): was told to refuse")));
  EXPECT_THAT(Short(RowsOf(job, AttentionRole::kSelf)), ElementsAre("0-1 TORCH_SDPA request"))
      << "the step that never ran is not on the receipt";
  EXPECT_EQ(fake.AwaitEnd(fake.Submit("the next")).state, JobState::kSucceeded);
}

TEST(EngineAttention, AForceThatCannotServeFallsBackForAPreferringJob) {
  FakeEngine fake;
  AddForce(fake.engine->policy(), AttnBackend::kFlashAttn, std::nullopt, "", "operator");
  const JobSnapshot job = fake.AwaitEnd(fake.Submit("a job", Asking(AttnBackend::kSageAttn)));
  const auto self = RowsOf(job, AttentionRole::kSelf);
  EXPECT_THAT(Short(self), ElementsAre("0-2 SAGE_ATTN request"));
  ASSERT_THAT(self[0].selection.refusals, SizeIs(1));
  EXPECT_EQ(self[0].selection.refusals[0].source, SelectionSource::kForce);
}

TEST(EngineAttention, WhereNothingIsLeftTheJobFailsWithEveryRefusal) {
  FakeEngine fake;
  fake.model.specs[1].supported = {AttnBackend::kTorchSdpa};
  const std::string id = StartAndStopIn(fake, 0);
  fake.model.backends.sdpa_refuses = true;
  const ScopedForce moved(fake.engine->policy(), std::nullopt);  // so that it selects anew
  fake.model.steps.Open();
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.error->code, StatusCode::kFailedPrecondition);
  EXPECT_THAT(job.error->message, HasSubstr("was told to refuse"));
  // Self-attention had found another backend for step 1, but that step never ran.
  EXPECT_THAT(Short(RowsOf(job, AttentionRole::kSelf)), ElementsAre("0-0 TORCH_SDPA automatic"));
}

TEST(EngineAttention, TheEnvironmentsBackendComesAfterTheRequests) {
  EngineOptions options;
  options.environment_backend = AttnBackend::kReference;
  FakeEngine fake(options);
  EXPECT_THAT(Short(RowsOf(fake.AwaitEnd(fake.Submit("none")), AttentionRole::kSelf)),
              ElementsAre("0-2 REFERENCE environment"));
  EXPECT_THAT(Short(RowsOf(fake.AwaitEnd(fake.Submit("asks", Asking(AttnBackend::kSageAttn))),
                           AttentionRole::kSelf)),
              ElementsAre("0-2 SAGE_ATTN request"));
}

TEST(EngineAttention, AForceIsCheckedBeforeItIsMade) {
  FakeEngine fake;
  EXPECT_FALSE(fake.engine->CheckForce({AttnBackend::kReference}));
  EXPECT_FALSE(fake.engine->CheckForce({AttnBackend::kSageAttn}));
  const auto unfit = fake.engine->CheckForce({AttnBackend::kFlashAttn});
  ASSERT_TRUE(unfit);
  EXPECT_EQ(unfit->code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(unfit->field(), "backend");
  EXPECT_THAT(unfit->what(), AllOf(HasSubstr("head sizes up to 64"), HasSubstr("TORCH_SDPA"),
                                   HasSubstr("REFERENCE"), HasSubstr("SAGE_ATTN")));
  // Present in the build, but on no model's list.
  for (AttentionSpec& spec : fake.model.specs) spec.supported = {AttnBackend::kTorchSdpa};
  const auto unlisted = fake.engine->CheckForce({AttnBackend::kReference});
  ASSERT_TRUE(unlisted);
  EXPECT_THAT(unlisted->what(), HasSubstr("does not list it. Usable: TORCH_SDPA"));
}

TEST(EngineAttention, BackendsAreListedInAutomaticOrderWithTheirSentences) {
  FakeEngine fake;
  const auto backends = fake.engine->ListBackends();
  std::vector<AttnBackend> order;
  for (const BackendInfo& info : backends) order.push_back(info.backend);
  EXPECT_THAT(order, ElementsAre(AttnBackend::kCudnnAttn, AttnBackend::kFlashAttn,
                                 AttnBackend::kTorchSdpa, AttnBackend::kReference,
                                 AttnBackend::kSageAttn, AttnBackend::kSlidingTileAttn));
  EXPECT_EQ(backends[0].why_not, "not in this build: invented absence");
  EXPECT_FALSE(backends[0].automatic);
  EXPECT_EQ(backends[1].why_not, "takes head sizes up to 64, got 128");
  EXPECT_TRUE(backends[2].automatic);
  EXPECT_FALSE(backends[2].why_not);
  EXPECT_FALSE(backends[4].automatic);
}

TEST(EngineAttention, ExplainTellsTheChoiceAndEveryCandidate) {
  FakeEngine fake;
  const Lease force =
      AddForce(fake.engine->policy(), AttnBackend::kReference, std::nullopt, "", "operator");
  ExplainQuery query;
  query.attention.backend = AttnBackend::kSageAttn;
  const auto explanations = fake.engine->Explain(query);
  ASSERT_THAT(explanations, SizeIs(2));
  EXPECT_EQ(explanations[0].role, AttentionRole::kSelf);
  EXPECT_EQ(explanations[0].selection.granted.backend, AttnBackend::kReference);
  EXPECT_EQ(explanations[0].selection.granted.lease_id, force.id);
  ASSERT_THAT(explanations[0].candidates, SizeIs(6));
  EXPECT_FALSE(explanations[0].candidates[0].listed);
  EXPECT_TRUE(explanations[0].candidates[1].listed);
  EXPECT_TRUE(explanations[0].candidates[1].why_not);
  EXPECT_FALSE(explanations[1].candidates[4].listed) << "cross-attention lists no SAGE_ATTN";

  fake.engine->policy().Clear();
  query.attention = {AttnBackend::kFlashAttn, SelectionMode::kStrict, "", {}};
  const auto strict = fake.engine->Explain(query);
  ASSERT_TRUE(strict[0].error);
  EXPECT_EQ(strict[0].error->code, StatusCode::kFailedPrecondition);
  EXPECT_FALSE(strict[1].error) << "a short list fails no strict wish";

  query.model = "absent";
  EXPECT_THROW(fake.engine->Explain(query), Error);
}

}  // namespace
}  // namespace denoised
