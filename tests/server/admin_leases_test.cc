// Leases with scopes, schedules and explanations over real channels, the engine faked.
#include <httplib.h>

#include <functional>

#include "server/convert_status.h"
#include "tests/server/server_fixture.h"

namespace denoised {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Code = grpc::StatusCode;
using Stub = v1::AdminService::Stub;

class AdminLeasesTest : public ServerFixture {
 protected:
  grpc::Status Force(const v1::ForceBackendRequest& request, v1::Lease* lease) {
    return Call(admin_, &Stub::ForceBackend, request, lease);
  }
  grpc::Status Explain(const v1::ExplainSelectionRequest& request,
                       v1::ExplainSelectionResponse* response) {
    return Call(admin_, &Stub::ExplainSelection, request, response);
  }
  v1::ListLeasesResponse List() {
    v1::ListLeasesResponse response;
    EXPECT_TRUE(Call(admin_, &Stub::ListLeases, v1::ListLeasesRequest(), &response).ok());
    return response;
  }

  static v1::ForceBackendRequest Reference() {
    v1::ForceBackendRequest request;
    request.set_backend("REFERENCE");
    return request;
  }
  // Everything that a scope can say.
  static v1::LeaseScope FullScope() {
    v1::LeaseScope scope;
    scope.set_model("shapes");
    scope.set_role("self");
    scope.mutable_layers()->set_last(5);
    scope.mutable_steps()->set_first(4);
    scope.mutable_steps()->set_last(19);
    scope.mutable_sigma()->set_low(0.2);
    scope.mutable_sigma()->set_high(0.9);
    scope.set_tenant("studio");
    scope.set_job_id("job-1");
    scope.set_share_percent(7);
    return scope;
  }
};

TEST_F(AdminLeasesTest, AScopeAndItsTermsCrossUnchanged) {
  v1::ForceBackendRequest request = Reference();
  *request.mutable_scope() = FullScope();
  request.set_policy(v1::STRICT);
  request.mutable_budget()->set_metric("relative_l2");
  request.mutable_budget()->set_statistic("p99");
  request.mutable_budget()->set_limit(0.02);
  request.mutable_budget()->set_samples(200);
  v1::Lease lease;
  ASSERT_TRUE(Force(request, &lease).ok());
  EXPECT_EQ(lease.where().SerializeAsString(), request.scope().SerializeAsString());
  EXPECT_EQ(lease.scope(),
            "job=job-1 tenant=studio share=7% model=shapes layers=0-5 steps=4-19 sigma=0.2-0.9 "
            "role=self");
  EXPECT_EQ(lease.policy(), v1::STRICT);
  EXPECT_EQ(lease.budget().SerializeAsString(), request.budget().SerializeAsString());
  EXPECT_FALSE(lease.held());
  const Lease kept = engine_->policy().List().at(0);
  EXPECT_EQ(kept.scope.where.steps, (Interval{4, 19}));
  EXPECT_EQ(kept.mode, SelectionMode::kStrict);
  ASSERT_EQ(List().leases_size(), 1);
  EXPECT_EQ(List().leases(0).where().SerializeAsString(), request.scope().SerializeAsString());
  ASSERT_TRUE(Force(Reference(), &lease).ok());
  EXPECT_EQ(lease.scope(), "server");
  EXPECT_EQ(lease.where().ByteSizeLong(), 0u);
}

TEST_F(AdminLeasesTest, WhatWasFoundOfABudgetIsListed) {
  v1::ForceBackendRequest request = Reference();
  v1::Lease lease;
  ASSERT_TRUE(Force(request, &lease).ok());
  request.mutable_budget()->set_metric("max_abs");
  request.mutable_budget()->set_statistic("max");
  request.mutable_budget()->set_limit(1);
  request.mutable_budget()->set_samples(20);
  ASSERT_TRUE(Force(request, &lease).ok());
  EXPECT_FALSE(List().leases(0).has_judged());
  engine_->judged = std::pair(int64_t{7}, 0.25);
  EXPECT_EQ(List().leases(0).judged().samples(), 7);
  EXPECT_EQ(List().leases(0).judged().at_least(), 0.25);
  EXPECT_FALSE(List().leases(1).has_judged()) << "it has none";
}

TEST_F(AdminLeasesTest, WhatNoScopeCanSayIsRefusedByField) {
  v1::Lease lease;
  const auto field = [&](const std::function<void(v1::ForceBackendRequest&)>& edit) {
    v1::ForceBackendRequest request = Reference();
    edit(request);
    return Field(Force(request, &lease));
  };
  using R = v1::ForceBackendRequest;
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->set_role("vae"); }), "scope.role");
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->mutable_layers()->set_first(1); }), "scope.layers");
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->mutable_steps()->set_first(-1); }), "scope.steps");
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->mutable_sigma()->set_low(2); }), "scope.sigma");
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->set_share_percent(0); }), "scope.share_percent");
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->set_share_percent(101); }), "scope.share_percent");
  EXPECT_EQ(field([](R& r) { r.mutable_scope()->set_tenant("a b"); }), "scope.tenant");
  EXPECT_EQ(field([](R& r) { r.set_policy(static_cast<v1::SelectionPolicy>(7)); }), "policy");
  EXPECT_EQ(field([](R& r) { r.mutable_budget()->set_metric("feeling"); }), "budget.metric");
  EXPECT_EQ(field([](R& r) {
              r.mutable_budget()->set_metric("max_abs");
              r.mutable_budget()->set_statistic("median");
            }),
            "budget.statistic");
  EXPECT_EQ(field([](R& r) {
              r.mutable_budget()->set_metric("max_abs");
              r.mutable_budget()->set_statistic("p99");
              r.mutable_budget()->set_samples(1);
            }),
            "budget.limit");
  EXPECT_TRUE(engine_->policy().List().empty());
}

TEST_F(AdminLeasesTest, AGenerationThatHasMovedOnChangesNothing) {
  v1::Lease first;
  ASSERT_TRUE(Force(Reference(), &first).ok());
  EXPECT_EQ(first.generation(), List().generation());
  v1::ForceBackendRequest request = Reference();
  request.set_expected_generation(first.generation());
  v1::Lease second;
  ASSERT_TRUE(Force(request, &second).ok()) << "nobody changed anything meanwhile";
  EXPECT_EQ(second.generation(), first.generation() + 1);
  const auto refused = [](const grpc::Status& status) {
    return status.error_code() == Code::ABORTED && Reason(status) == "GENERATION_MISMATCH";
  };
  EXPECT_TRUE(refused(Force(request, &second)));
  v1::RenewLeaseRequest renew;
  renew.set_lease_id(first.id());
  renew.set_expected_generation(first.generation());
  EXPECT_TRUE(refused(Call(admin_, &Stub::RenewLease, renew, &second)));
  v1::ReleaseForceRequest release;
  release.set_lease_id(first.id());
  release.set_expected_generation(first.generation());
  v1::ReleaseForceResponse released;
  EXPECT_TRUE(refused(Call(admin_, &Stub::ReleaseForce, release, &released)));
  release.set_lease_id("");
  release.set_all(true);
  EXPECT_TRUE(refused(Call(admin_, &Stub::ReleaseForce, release, &released)));
  EXPECT_EQ(List().leases_size(), 2);
  release.set_expected_generation(List().generation());
  EXPECT_TRUE(Call(admin_, &Stub::ReleaseForce, release, &released).ok());
  EXPECT_EQ(released.released(), 2);
}

TEST_F(AdminLeasesTest, ALeaseIsRenewed) {
  v1::ForceBackendRequest request = Reference();
  request.mutable_ttl()->set_seconds(60);
  v1::Lease lease;
  ASSERT_TRUE(Force(request, &lease).ok());
  v1::RenewLeaseRequest renew;
  renew.set_lease_id(lease.id());
  renew.mutable_ttl()->set_seconds(3600);
  v1::Lease renewed;
  ASSERT_TRUE(Call(admin_, &Stub::RenewLease, renew, &renewed).ok());
  EXPECT_EQ(renewed.id(), lease.id());
  EXPECT_GT(renewed.remaining().seconds(), 3500);
  EXPECT_EQ(renewed.generation(), lease.generation() + 1);
  renew.clear_ttl();
  ASSERT_TRUE(Call(admin_, &Stub::RenewLease, renew, &renewed).ok());
  EXPECT_FALSE(renewed.has_remaining()) << "no end";
  renew.mutable_ttl()->set_seconds(-1);
  EXPECT_EQ(Field(Call(admin_, &Stub::RenewLease, renew, &renewed)), "ttl");
  renew.clear_ttl();
  renew.set_lease_id("force-99");
  EXPECT_EQ(Reason(Call(admin_, &Stub::RenewLease, renew, &renewed)), "LEASE_NOT_FOUND");
  renew.clear_lease_id();
  EXPECT_EQ(Field(Call(admin_, &Stub::RenewLease, renew, &renewed)), "lease_id");
}

TEST_F(AdminLeasesTest, AHoldHasAScopeAndSaysThatItIsOne) {
  v1::HoldBackendRequest request;
  request.set_backend("REFERENCE");
  request.mutable_scope()->set_tenant("studio");
  grpc::ClientContext context;
  const auto stream = admin_->HoldBackend(&context, request);
  v1::Lease lease;
  ASSERT_TRUE(stream->Read(&lease));
  EXPECT_TRUE(lease.held());
  EXPECT_EQ(lease.scope(), "tenant=studio");
  EXPECT_TRUE(engine_->policy().List().at(0).held);
  context.TryCancel();
  while (stream->Read(&lease)) {
  }
  stream->Finish();
}

TEST_F(AdminLeasesTest, AQuestionCrossesWithItsPlaceAndItsLease) {
  v1::ExplainSelectionRequest request;
  request.set_layer(3);
  request.set_step(7);
  request.set_sigma(0.5);
  request.set_tenant("");
  request.set_job_id("job-1");
  request.set_role("cross");
  *request.mutable_what_if() = Reference();
  *request.mutable_what_if()->mutable_scope() = FullScope();
  v1::ExplainSelectionResponse response;
  ASSERT_TRUE(Explain(request, &response).ok());
  const ExplainQuery query = engine_->last_query();
  EXPECT_EQ(query.layer, 3);
  EXPECT_EQ(query.step, 7);
  EXPECT_EQ(query.sigma, 0.5);
  EXPECT_EQ(query.tenant, "");
  EXPECT_EQ(query.job_id, "job-1");
  EXPECT_EQ(query.role, AttentionRole::kCross);
  ASSERT_TRUE(query.what_if);
  EXPECT_EQ(query.what_if->scope.tenant, "studio");
  request.mutable_what_if()->set_backend("FAST");
  EXPECT_EQ(Field(Explain(request, &response)), "what_if.backend");
  request.mutable_what_if()->set_backend("REFERENCE");
  request.mutable_what_if()->mutable_scope()->set_role("vae");
  EXPECT_EQ(Field(Explain(request, &response)), "what_if.scope.role");
  request.clear_what_if();
  request.set_role("vae");
  EXPECT_EQ(Field(Explain(request, &response)), "role");
}

TEST_F(AdminLeasesTest, AnAnswerCrossesWhole) {
  Explanation self;
  self.role = AttentionRole::kSelf;
  Wish force{SelectionSource::kForce, AttnBackend::kSageAttn, "", "force-3"};
  Wish rule{SelectionSource::kRequest, AttnBackend::kReference, "", "", 2};
  self.wishes = {{force, "layers=0-5", WishOutcome::kGranted, "in layers 0-5"},
                 {rule, "", WishOutcome::kHidden, "another came first"}};
  self.layers = {
      {{0, 5}, Selection{force, {}}, std::nullopt},
      {{6, 29}, std::nullopt, JobError{StatusCode::kFailedPrecondition, "none can", "", ""}}};
  self.what_if = "nothing would change";
  engine_->explanations = {self};
  v1::ExplainSelectionResponse response;
  ASSERT_TRUE(Explain({}, &response).ok());
  ASSERT_EQ(response.roles_size(), 1);
  const v1::RoleExplanation& role = response.roles(0);
  ASSERT_EQ(role.wishes_size(), 2);
  EXPECT_EQ(role.wishes(0).source(), "force");
  EXPECT_EQ(role.wishes(0).lease_id(), "force-3");
  EXPECT_EQ(role.wishes(0).scope(), "layers=0-5");
  EXPECT_EQ(role.wishes(0).outcome(), "granted");
  EXPECT_FALSE(role.wishes(0).has_rule());
  EXPECT_EQ(role.wishes(1).rule(), 2);
  EXPECT_EQ(role.wishes(1).reason(), "another came first");
  ASSERT_EQ(role.layers_size(), 2);
  EXPECT_EQ(role.layers(0).would_run(), "SAGE_ATTN");
  EXPECT_EQ(role.layers(1).would_run(), "");
  EXPECT_EQ(role.layers(1).reason(), "none can");
  EXPECT_EQ(role.layers(1).layers().last(), 29);
  EXPECT_EQ(role.what_if(), "nothing would change");
}

TEST_F(AdminLeasesTest, LeasesAreOnTheMetricsPageByTheKindsOfTheirScopes) {
  httplib::Client http("http://" + server_->http_address());
  const auto page = [&] { return http.Get("/metrics")->body; };
  const std::string scoped = "denoised_lease_active{backend=\"REFERENCE\",scope=\"model+layers\"}";
  EXPECT_THAT(page(), Not(HasSubstr("model+layers")));
  LeaseRequest request{AttnBackend::kReference};
  request.scope.model = "shapes";
  request.scope.where.layers = {0, 3};
  const Lease lease = engine_->policy().Force(request);
  EXPECT_THAT(page(), HasSubstr(scoped + " 1"));
  engine_->policy().Release(lease.id);
  EXPECT_THAT(page(), Not(HasSubstr("model+layers"))) << "only kinds that are in use";
}

// ---- schedules

TEST_F(AdminLeasesTest, AScheduleReachesTheEngine) {
  v1::GenerationRequest request;
  request.set_prompt("p");
  request.set_pin_backends(true);
  v1::AttentionRule* rule = request.mutable_attention()->add_schedule();
  rule->mutable_steps()->set_last(4);
  rule->mutable_layers()->set_first(1);
  rule->mutable_layers()->set_last(3);
  rule->mutable_sigma()->set_high(0.5);
  rule->set_role("cross");
  rule->set_backend("sage_attn");
  rule->set_policy(v1::STRICT);
  (*rule->mutable_parameters()->mutable_fields())["k"].set_number_value(3);
  request.mutable_attention()->add_schedule()->set_backend("REFERENCE");
  v1::Job job;
  ASSERT_TRUE(Submit(request, &job).ok());
  const GenerationRequest got = engine_->last_request();
  EXPECT_TRUE(got.pin_backends);
  ASSERT_EQ(got.attention.schedule.size(), 2u);
  const AttentionRule expected{
      {AttentionRole::kCross, Interval{1, 3}, Interval{0, 4}, SigmaRange{0, 0.5}},
      AttnBackend::kSageAttn,
      "{\"k\":3}",
      SelectionMode::kStrict};
  EXPECT_EQ(got.attention.schedule[0], expected);
  EXPECT_EQ(got.attention.schedule[1], (AttentionRule{{}, AttnBackend::kReference}));
}

TEST_F(AdminLeasesTest, ARuleIsRefusedByItsIndex) {
  v1::Job job;
  const auto field = [&](const std::function<void(v1::AttentionRule&)>& edit) {
    v1::GenerationRequest request;
    request.set_prompt("p");
    request.mutable_attention()->add_schedule()->set_backend("REFERENCE");
    v1::AttentionRule* rule = request.mutable_attention()->add_schedule();
    rule->set_backend("REFERENCE");
    edit(*rule);
    return Field(Submit(request, &job));
  };
  using R = v1::AttentionRule;
  EXPECT_EQ(field([](R& r) { r.set_backend("FAST"); }), "attention.schedule[1].backend");
  EXPECT_EQ(field([](R& r) { r.clear_backend(); }), "attention.schedule[1].backend");
  EXPECT_EQ(field([](R& r) { r.set_role("vae"); }), "attention.schedule[1].role");
  EXPECT_EQ(field([](R& r) { r.set_policy(static_cast<v1::SelectionPolicy>(9)); }),
            "attention.schedule[1].policy");
  EXPECT_EQ(field([](R& r) {
              google::protobuf::Struct* inner = r.mutable_parameters();
              for (int i = 0; i < 17; ++i) {
                inner = (*inner->mutable_fields())["x"].mutable_struct_value();
              }
            }),
            "attention.schedule[1].parameters");
}

TEST_F(AdminLeasesTest, AReceiptSaysLayersAndRule) {
  const std::string id = SubmitPrompt("p");
  ReceiptEntry entry;
  entry.layers = Interval{0, 3};
  entry.selection.granted = {SelectionSource::kRequest, AttnBackend::kReference, "", "", 1};
  engine_->Change(id, [&](JobSnapshot& job) { job.receipt.entries = {entry, ReceiptEntry{}}; });
  v1::GetJobRequest get;
  get.set_job_id(id);
  v1::Job job;
  ASSERT_TRUE(Call(generation_, &v1::GenerationService::Stub::GetJob, get, &job).ok());
  EXPECT_EQ(job.receipt().entries(0).layers().last(), 3);
  EXPECT_EQ(job.receipt().entries(0).rule(), 1);
  EXPECT_THAT(job.receipt().entries(0).reason(), HasSubstr("rule 1"));
  EXPECT_FALSE(job.receipt().entries(1).has_layers());
  EXPECT_FALSE(job.receipt().entries(1).has_rule());
}

TEST_F(AdminLeasesTest, TheExplanationOfARefusalIsInItsDetails) {
  const std::string lines = "request SAGE_ATTN: refused: not in this build\nautomatic ...";
  std::string message;
  while (message.size() < 9000) message += "\xc3\xa9";
  JobError error{StatusCode::kFailedPrecondition, message, "attention.backend", "BACKEND_REFUSED"};
  error.details = lines;
  const grpc::Status status = ToStatus(error);
  const auto info = Find<google::rpc::ErrorInfo>(status);
  EXPECT_EQ(info.metadata().at("explanation"), lines);
  error.details = std::string(9000, 'x');
  const grpc::Status longest = ToStatus(error);
  EXPECT_LT(longest.error_details().size() * 4 / 3 + 3 * longest.error_message().size(), 8000u)
      << "the trailers of a call have 8 KiB";
}

}  // namespace
}  // namespace denoised
