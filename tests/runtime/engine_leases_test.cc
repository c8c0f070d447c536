// Leases with scopes through the engine: what they reach, what is refused, and that explanations
// say beforehand what happens then.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/runtime/fake_engine.h"
#include "tests/runtime/leases.h"

namespace denoised {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

constexpr int64_t kLayers = 6;

struct LayeredEngine : FakeEngine {
  explicit LayeredEngine(EngineOptions options = {})
      : FakeEngine(std::move(options), true, kLayers) {}
  Lease Force(AttnBackend backend, LeaseScope scope) {
    LeaseRequest request{backend};
    request.scope = std::move(scope);
    return engine->policy().Force(std::move(request));
  }
  JobSnapshot Run(std::function<void(GenerationRequest&)> edit = {}) {
    return AwaitEnd(Submit("a job", std::move(edit)));
  }
};

LeaseScope Layers(int64_t first, int64_t last) { return {.where = {.layers = {{first, last}}}}; }
LeaseScope Steps(int64_t first, int64_t last) { return {.where = {.steps = {{first, last}}}}; }

// "layers 0-5 steps 1-1 REFERENCE" of each row of self-attention.
std::vector<std::string> SelfRows(const JobSnapshot& job) {
  std::vector<std::string> rows;
  for (const ReceiptEntry& row : job.receipt.entries) {
    if (row.role != AttentionRole::kSelf) continue;
    rows.push_back((row.layers ? "layers " + ToText(*row.layers) + " " : "") + "steps " +
                   ToText(Interval{row.first_step, row.last_step}) + " " +
                   std::string(AttnBackendName(row.ran)));
  }
  return rows;
}

// What ran of self-attention, by step and layer.
using Ran = std::map<std::pair<int64_t, int64_t>, AttnBackend>;
Ran WhatRan(const JobSnapshot& job) {
  Ran ran;
  for (const ReceiptEntry& row : job.receipt.entries) {
    if (row.role != AttentionRole::kSelf) continue;
    const Interval layers = row.layers.value_or(Interval{0, kLayers - 1});
    for (int64_t step = row.first_step; step <= row.last_step; ++step) {
      for (int64_t layer = layers.first; layer <= layers.last; ++layer) {
        EXPECT_TRUE(ran.emplace(std::pair(step, layer), row.ran).second) << "two rows for a call";
      }
    }
  }
  return ran;
}

// What an explanation says of self-attention at a step, by layer.
std::map<int64_t, AttnBackend> WouldRun(const Explanation& explanation) {
  std::map<int64_t, AttnBackend> would;
  for (const ExplainedLayers& layers : explanation.layers) {
    for (int64_t layer = layers.layers.first; layer <= layers.layers.last; ++layer) {
      would[layer] = layers.selection.value().granted.backend;
    }
  }
  return would;
}

TEST(EngineLeases, ALeaseOfLayersAndOneOfStepsShowExactlySo) {
  LayeredEngine fake;
  fake.Force(AttnBackend::kReference, Layers(1, 2));
  EXPECT_THAT(SelfRows(fake.Run()),
              ElementsAre("layers 0 steps 0-2 TORCH_SDPA", "layers 1-2 steps 0-2 REFERENCE",
                          "layers 3-5 steps 0-2 TORCH_SDPA"));
  fake.engine->policy().Clear();
  fake.Force(AttnBackend::kSageAttn, Steps(1, 1));
  EXPECT_THAT(SelfRows(fake.Run()),
              ElementsAre("steps 0 TORCH_SDPA", "steps 1 SAGE_ATTN", "steps 2 TORCH_SDPA"));
}

TEST(EngineLeases, AnExplanationSaysBeforehandWhatThenRuns) {
  std::vector<LeaseScope> scopes = {{},
                                    Layers(2, 4),
                                    Steps(1, 2),
                                    {.tenant = "studio"},
                                    {.model = "fake"},
                                    {.where = {.sigma = {{0.5, 1}}}}};
  scopes.push_back({.tenant = "other"});
  scopes.push_back(
      {.where = {.role = AttentionRole::kSelf, .layers = {{0, 0}}, .steps = {{0, 0}}}});
  for (const LeaseScope& scope : scopes) {
    SCOPED_TRACE(ToText(scope));
    LayeredEngine fake;
    fake.Force(AttnBackend::kSageAttn, Layers(0, 1));
    std::map<int64_t, std::map<int64_t, AttnBackend>> said;
    for (int64_t step = 0; step < 3; ++step) {
      ExplainQuery query;
      query.step = step;
      query.sigma = 1 - static_cast<double>(step) / 3;
      query.tenant = "studio";
      query.what_if = LeaseRequest{AttnBackend::kReference, "", scope};
      said[step] = WouldRun(fake.engine->Explain(query).front());
    }
    fake.Force(AttnBackend::kReference, scope);
    const Ran ran = WhatRan(fake.Run([](GenerationRequest& r) { r.tenant = "studio"; }));
    ASSERT_EQ(ran.size(), 3u * kLayers);
    for (const auto& [place, backend] : ran) {
      EXPECT_EQ(said[place.first][place.second], backend)
          << "step " << place.first << " layer " << place.second;
    }
  }
}

TEST(EngineLeases, WhatALeaseWouldChangeIsOneSentence) {
  LayeredEngine fake;
  const auto what_if = [&](AttnBackend backend, LeaseScope scope, int64_t step = 0) {
    ExplainQuery query;
    query.step = step;
    query.what_if = LeaseRequest{backend, "", std::move(scope)};
    return fake.engine->Explain(query).front().what_if;
  };
  EXPECT_EQ(what_if(AttnBackend::kReference, {}), "REFERENCE would run instead of TORCH_SDPA");
  EXPECT_EQ(what_if(AttnBackend::kReference, Layers(1, 2)),
            "REFERENCE would run instead of TORCH_SDPA in layers 1-2");
  EXPECT_EQ(what_if(AttnBackend::kReference, Steps(1, 2)),
            "nothing would change: the lease holds for steps 1-2, and this is step 0");
  EXPECT_EQ(what_if(AttnBackend::kReference, Steps(1, 2), 1),
            "REFERENCE would run instead of TORCH_SDPA");
  EXPECT_EQ(what_if(AttnBackend::kTorchSdpa, {}), "the same would run, by this lease");
  EXPECT_THAT(what_if(AttnBackend::kReference, {.tenant = "studio"}),
              HasSubstr("is for tenant studio"));
  EXPECT_THAT(what_if(AttnBackend::kFlashAttn, {}),
              AllOf(HasSubstr("would be refused"), HasSubstr("head sizes up to 64")));
  fake.Force(AttnBackend::kSageAttn, Layers(0, 5));
  EXPECT_THAT(what_if(AttnBackend::kReference, {}), HasSubstr("SAGE_ATTN by force force-1"));
  EXPECT_THAT(fake.engine->policy().List(), SizeIs(1)) << "asking forces nothing";
}

// "force-2 granted", "request rule 0 hidden", ... in their order.
std::vector<std::string> Outcomes(const Explanation& explanation) {
  std::vector<std::string> lines;
  for (const ExplainedWish& one : explanation.wishes) {
    lines.push_back(SourceText(one.wish) + " " + std::string(AttnBackendName(one.wish.backend)) +
                    " " + std::string(WishOutcomeName(one.outcome)));
  }
  return lines;
}

TEST(EngineLeases, EveryWishIsToldInOrderWithWhatBecomesOfIt) {
  LayeredEngine fake;
  fake.Force(AttnBackend::kReference, {.tenant = "other"});
  fake.Force(AttnBackend::kFlashAttn, {});
  ExplainQuery query;
  query.layer = 1;
  query.attention.schedule = {{{.layers = {{3, 4}}}, AttnBackend::kReference},
                              {{.layers = {{0, 2}}}, AttnBackend::kSageAttn},
                              {{}, AttnBackend::kReference}};
  query.attention.backend = AttnBackend::kTorchSdpa;
  const Explanation self = fake.engine->Explain(query).front();
  EXPECT_THAT(Outcomes(self),
              ElementsAre("force force-1 REFERENCE elsewhere", "force force-2 FLASH_ATTN refused",
                          "request rule 0 REFERENCE elsewhere", "request rule 1 SAGE_ATTN granted",
                          "request rule 2 REFERENCE hidden", "request TORCH_SDPA hidden",
                          "automatic FLASH_ATTN hidden", "automatic TORCH_SDPA hidden",
                          "automatic REFERENCE hidden"));
  EXPECT_EQ(self.wishes[0].reason, "is for tenant other");
  EXPECT_EQ(self.wishes[1].reason, "takes head sizes up to 64, got 128");
  EXPECT_EQ(self.wishes[2].reason, "holds for layers 3-4, and this is layer 1");
  EXPECT_EQ(self.wishes[4].reason, "an earlier rule of its schedule holds here");
  EXPECT_EQ(self.wishes[5].reason, "SAGE_ATTN by request rule 1 came first");
  EXPECT_THAT(self.layers, SizeIs(1));

  query.layer.reset();
  const Explanation all = fake.engine->Explain(query).front();
  EXPECT_EQ(all.wishes[2].outcome, WishOutcome::kGranted);
  EXPECT_EQ(all.wishes[2].reason, "in layers 3-4");
  ASSERT_THAT(all.layers, SizeIs(3)) << "0-2 SAGE_ATTN, 3-4 and 5 REFERENCE by other rules";
  EXPECT_EQ(all.layers[2].selection->granted.rule, 2);
  EXPECT_EQ(all.selection.granted.backend, AttnBackend::kSageAttn) << "of most layers";
}

TEST(EngineLeases, ARefusalHasInItsDetailsWhatAnExplanationSays) {
  LayeredEngine fake;
  fake.Force(AttnBackend::kSlidingTileAttn, {.tenant = "other"});
  ExplainQuery query;
  query.attention = {AttnBackend::kFlashAttn, SelectionMode::kStrict, "", {}};
  const Explanation self = fake.engine->Explain(query).front();
  ASSERT_TRUE(self.error);
  GenerationRequest request = SmallRequest("strict");
  request.attention = query.attention;
  const auto result = fake.engine->Submit(request);
  ASSERT_TRUE(std::holds_alternative<Error>(result));
  const Error& error = std::get<Error>(result);
  EXPECT_EQ(error.reason(), "BACKEND_REFUSED");
  EXPECT_EQ(self.error->message, error.what());
  std::vector<ExplainedWish> here = self.wishes;
  std::erase_if(here, [](const auto& one) { return one.outcome == WishOutcome::kElsewhere; });
  EXPECT_EQ(error.details(), ToText(here));
  EXPECT_THAT(error.details(),
              HasSubstr("request FLASH_ATTN: refused: takes head sizes up to 64, got 128"));

  request.attention = {};
  request.attention.schedule = {{{}, AttnBackend::kReference},
                                {{}, AttnBackend::kFlashAttn, "", SelectionMode::kStrict}};
  const auto by_rule = fake.engine->Submit(request);
  EXPECT_EQ(std::get<Error>(by_rule).field(), "attention.schedule[1].backend");
  EXPECT_THAT(std::get<Error>(by_rule).details(), HasSubstr("request rule 1 FLASH_ATTN: refused"));
}

TEST(EngineLeases, ALiveJobAnswersForItself) {
  LayeredEngine fake;
  fake.model.steps.Close();
  const std::string id = fake.Submit("a job", [](GenerationRequest& request) {
    request.tenant = "studio";
    request.attention.backend = AttnBackend::kSageAttn;
  });
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(2));
  fake.Force(AttnBackend::kReference, {.tenant = "studio"});
  fake.Force(AttnBackend::kSlidingTileAttn, Steps(1, 1));
  ExplainQuery query;
  query.job_id = id;
  const Explanation self = fake.engine->Explain(query).front();
  EXPECT_THAT(Outcomes(self), testing::Contains("force force-1 REFERENCE granted"));
  EXPECT_THAT(Outcomes(self), testing::Contains("force force-2 SLIDING_TILE_ATTN hidden"))
      << "the job stands at step 1";
  EXPECT_THAT(Outcomes(self), testing::Contains("request SAGE_ATTN hidden"));
  query.tenant = "another";
  EXPECT_EQ(fake.engine->Explain(query).front().selection.granted.backend,
            AttnBackend::kSlidingTileAttn);
  fake.model.steps.Open();
  fake.AwaitEnd(id);
}

TEST(EngineLeases, AForceThatCanServeNoLayerInItsScopeIsRefusedWithTheUsableNames) {
  LayeredEngine fake;
  const auto refusal = [&](AttnBackend backend, LeaseScope scope) {
    return fake.engine->CheckForce({backend, "", std::move(scope)}).value();
  };
  EXPECT_FALSE(fake.engine->CheckForce({AttnBackend::kSageAttn, "", Layers(5, 99)}));
  const Error cross = refusal(AttnBackend::kSageAttn, {.where = {.role = AttentionRole::kCross}});
  EXPECT_EQ(cross.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(cross.what(), AllOf(HasSubstr("cross-attention of fake does not list it"),
                                  HasSubstr("Usable: REFERENCE TORCH_SDPA")));
  const Error beyond = refusal(AttnBackend::kReference, Layers(6, 9));
  EXPECT_EQ(beyond.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(beyond.field(), "scope.layers");
  EXPECT_THAT(beyond.what(), HasSubstr("has 6 layers"));
  const Error model = refusal(AttnBackend::kReference, {.model = "absent"});
  EXPECT_EQ(model.code(), StatusCode::kNotFound);
  EXPECT_EQ(model.field(), "scope.model");
  EXPECT_THAT(model.what(), HasSubstr("there is: fake"));
  EXPECT_EQ(refusal(AttnBackend::kReference, {.model = ""}).field(), "scope.model");
  EXPECT_EQ(refusal(AttnBackend::kReference, Layers(3, 2)).field(), "scope.layers");
  EXPECT_EQ(refusal(AttnBackend::kReference, {.share = 1.5}).field(), "scope.share_percent");
  const Error job = refusal(AttnBackend::kReference, {.job = "absent"});
  EXPECT_EQ(job.code(), StatusCode::kNotFound);
  EXPECT_EQ(job.field(), "scope.job_id");
  const JobSnapshot ended = fake.Run();
  EXPECT_EQ(refusal(AttnBackend::kReference, {.job = ended.id}).reason(), "JOB_FINISHED");
  EXPECT_EQ(fake.engine->CheckForce({AttnBackend::kSlidingTileAttn, "bad"})->field(), "parameters");
}

TEST(EngineLeases, ACanaryHoldsTheSameJobsAndALargerOneHoldsThemToo) {
  LayeredEngine fake;
  fake.model.steps.Close();
  std::vector<std::string> ids;
  for (int i = 0; i < 40; ++i) {
    ids.push_back(fake.Submit("a job", [](GenerationRequest& r) { r.num_inference_steps = 2; }));
  }
  fake.Force(AttnBackend::kReference, {.share = 0.2});
  fake.Force(AttnBackend::kSageAttn, {.share = 0.6});
  fake.model.steps.Open();
  for (const std::string& id : ids) {
    const double at = ShareOfId(id);
    const std::string ran = at < 0.2 ? "REFERENCE" : at < 0.6 ? "SAGE_ATTN" : "TORCH_SDPA";
    const std::string first = SelfRows(fake.AwaitEnd(id)).back();
    EXPECT_THAT(first, testing::EndsWith(ran)) << id << " at " << at;
  }
}

TEST(EngineLeases, APinnedJobKeepsTheLeasesOfItsBeginningAlsoWhenItIsPutAside) {
  LayeredEngine fake;
  const Lease first = fake.Force(AttnBackend::kReference, {});
  fake.model.steps.Close();
  const std::string id = fake.Submit("a job", [](GenerationRequest& request) {
    request.num_inference_steps = 6;
    request.pin_backends = true;
  });
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.model.steps.AwaitArrival(2));
  fake.engine->policy().Release(first.id);
  fake.Force(AttnBackend::kSageAttn, {.job = id});
  ASSERT_FALSE(fake.engine->Suspend(id));
  fake.model.steps.Allow(1);
  ASSERT_TRUE(fake.WaitIdle());
  ASSERT_EQ(fake.Get(id).state, JobState::kSuspended);
  ExplainQuery query;
  query.job_id = id;
  EXPECT_EQ(fake.engine->Explain(query).front().selection.granted.lease_id, first.id);
  ASSERT_FALSE(fake.engine->Resume(id));
  fake.model.steps.Open();
  EXPECT_THAT(SelfRows(fake.AwaitEnd(id)), ElementsAre("steps 0-5 REFERENCE"));
}

TEST(EngineLeases, AStrictLeaseFailsWorkThatItCannotServe) {
  LayeredEngine fake;
  fake.model.steps.Close();
  const std::string id = fake.Submit("a job");
  ASSERT_TRUE(fake.model.steps.AwaitArrival(1));
  LeaseRequest request{AttnBackend::kFlashAttn};
  request.mode = SelectionMode::kStrict;
  request.scope = Steps(1, 1);
  fake.engine->policy().Force(std::move(request));
  fake.model.steps.Open();
  const JobSnapshot job = fake.AwaitEnd(id);
  EXPECT_EQ(job.state, JobState::kFailed);
  EXPECT_EQ(job.error->reason, "BACKEND_REFUSED");
  EXPECT_THAT(job.error->details, HasSubstr("force force-1 FLASH_ATTN: refused: takes head sizes"));
}

TEST(EngineLeases, QueriesThatNameNoPlaceAreRefusedByField) {
  LayeredEngine fake;
  const auto field = [&](const std::function<void(ExplainQuery&)>& edit) -> std::string {
    ExplainQuery query;
    edit(query);
    try {
      fake.engine->Explain(query);
    } catch (const Error& error) {
      return error.field();
    }
    return "accepted";
  };
  EXPECT_EQ(field([](ExplainQuery& q) { q.layer = 6; }), "layer");
  EXPECT_EQ(field([](ExplainQuery& q) { q.layer = -1; }), "layer");
  EXPECT_EQ(field([](ExplainQuery& q) { q.step = -1; }), "step");
  EXPECT_EQ(field([](ExplainQuery& q) { q.sigma = -0.5; }), "sigma");
  EXPECT_EQ(field([](ExplainQuery& q) { q.step = 400; }), "accepted") << "nobody said how many";
  EXPECT_EQ(field([](ExplainQuery& q) {
              q.what_if = LeaseRequest{AttnBackend::kReference, "", Layers(3, 2)};
            }),
            "what_if.scope.layers");
  EXPECT_EQ(field([](ExplainQuery& q) {
              q.attention.schedule = {{{.layers = {{7, 8}}}, AttnBackend::kReference}};
            }),
            "attention.schedule[0].layers");
}

}  // namespace
}  // namespace denoised
