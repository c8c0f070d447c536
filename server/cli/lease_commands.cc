// force, hold, renew, leases, release: an operator's leases, on the admin port.
#include <google/protobuf/util/time_util.h>

#include <array>
#include <cstdio>
#include <memory>
#include <utility>

#include "denoised/v1/admin.grpc.pb.h"
#include "server/cli/command.h"
#include "server/cli/connection.h"
#include "server/cli/lease_flags.h"
#include "server/cli/output.h"
#include "server/cli/text.h"

namespace denoised::cli {
namespace {

using Stub = v1::AdminService::Stub;
using google::protobuf::util::TimeUtil;

constexpr char kNarrowness[] =
    "Of the forces that hold for a layer the narrowest decides, of equally narrow ones the newest. "
    "One is\nnarrower than another where, at the first of these in which they differ, it says "
    "something and the\nother does not: job, tenant, share, model, layers, steps, sigma, role; "
    "where both say the same,\nthe one with fewer layers, then fewer steps, then the shorter range "
    "of sigma, then less share.\n";

std::string Remaining(const v1::Lease& lease) {
  if (!lease.has_remaining()) return lease.held() ? "with its holder" : "no end";
  const int64_t ms = TimeUtil::DurationToMilliseconds(lease.remaining());
  return std::to_string((ms + 999) / 1000) + " s left";
}

std::string BudgetText(const v1::Budget& budget) {
  std::array<char, 32> limit;
  std::snprintf(limit.data(), limit.size(), "%g", budget.limit());
  return budget.metric() + " " + budget.statistic() + " < " + limit.data() + " over " +
         std::to_string(budget.samples());
}

// "17 samples, at least 0": not all that it wants.
std::string JudgedText(const v1::Lease& lease) {
  const v1::BudgetState& judged = lease.judged();
  std::array<char, 32> now;
  std::snprintf(now.data(), now.size(), "%.3g", judged.at_least());
  return std::to_string(judged.samples()) + " samples, " +
         (judged.samples() < lease.budget().samples() ? "at least " : "at ") + now.data();
}

void PrintLease(const v1::Lease& lease, bool json) {
  if (json) return PrintJson(lease);
  std::string line = lease.id() + " forces " + lease.backend();
  if (lease.has_parameters()) line += " with " + OneLine(Json(lease.parameters()), 300);
  if (lease.policy() == v1::STRICT) line += ", strict";
  line += ", " + OneLine(lease.scope(), 300) + ", " + Remaining(lease);
  if (lease.has_budget()) line += ", while " + BudgetText(lease.budget());
  PrintLine(line + " (generation " + std::to_string(lease.generation()) + ")");
  FlushOutput();
}

// Reads NAME and the flags of a force; false where help was asked for.
bool ParseForce(const Invocation& call, CommonOptions* options, v1::ForceBackendRequest* request) {
  std::vector<Flag> flags = LeaseFlags("", [request] { return request; });
  for (Flag& flag : TermFlags(request)) flags.push_back(std::move(flag));
  const auto rest = ParseCommand(call, std::move(flags), options, 1, 1);
  if (rest) request->set_backend(rest->front());
  return rest.has_value();
}

int Force(const Invocation& call) {
  CommonOptions options;
  v1::ForceBackendRequest request;
  if (!ParseForce(call, &options, &request)) return kExitOk;
  PrintLease(Call(AdminStub(options.admin), &Stub::ForceBackend, request, options.admin),
             options.json);
  return kExitOk;
}

// The same, for as long as its stream.
v1::HoldBackendRequest HoldOf(const v1::ForceBackendRequest& force) {
  v1::HoldBackendRequest hold;
  hold.set_backend(force.backend());
  hold.set_reason(force.reason());
  hold.set_policy(force.policy());
  if (force.has_ttl()) *hold.mutable_ttl() = force.ttl();
  if (force.has_parameters()) *hold.mutable_parameters() = force.parameters();
  if (force.has_scope()) *hold.mutable_scope() = force.scope();
  if (force.has_budget()) *hold.mutable_budget() = force.budget();
  if (force.has_expected_generation()) {
    hold.set_expected_generation(force.expected_generation());
  }
  return hold;
}

int Hold(const Invocation& call) {
  CommonOptions options;
  v1::ForceBackendRequest force;
  if (!ParseForce(call, &options, &force)) return kExitOk;
  const v1::HoldBackendRequest request = HoldOf(force);
  RequireUtf8(request);
  const auto stub = AdminStub(options.admin);
  grpc::ClientContext context;
  const auto reader = stub->HoldBackend(&context, request);
  for (v1::Lease lease; reader->Read(&lease);) PrintLease(lease, options.json);
  CheckStatus(reader->Finish(), options.admin);
  return kExitOk;
}

int Renew(const Invocation& call) {
  CommonOptions options;
  v1::RenewLeaseRequest request;
  const std::vector<Flag> flags = {
      TtlFlag([&] { return request.mutable_ttl(); }),
      GenerationFlag([&](uint64_t n) { request.set_expected_generation(n); })};
  const auto rest = ParseCommand(call, flags, &options, 1, 1);
  if (!rest) return kExitOk;
  request.set_lease_id(rest->front());
  PrintLease(Call(AdminStub(options.admin), &Stub::RenewLease, request, options.admin),
             options.json);
  return kExitOk;
}

void PrintLeases(const v1::ListLeasesResponse& reply) {
  std::vector<std::vector<std::string>> rows = {
      {"ID", "BACKEND", "PARAMETERS", "SCOPE", "TERMS", "END", "GENERATION", "HOLDER", "REASON"}};
  for (const v1::Lease& lease : reply.leases()) {
    const std::string parameters =
        lease.has_parameters() ? OneLine(Json(lease.parameters()), 60) : "";
    std::string terms = lease.policy() == v1::STRICT ? "strict" : "";
    if (lease.has_budget()) terms += (terms.empty() ? "" : ", ") + BudgetText(lease.budget());
    if (lease.has_judged()) terms += " (" + JudgedText(lease) + ")";
    rows.push_back({lease.id(), lease.backend(), parameters, OneLine(lease.scope(), 100), terms,
                    Remaining(lease), std::to_string(lease.generation()), lease.holder(),
                    OneLine(lease.reason(), 60)});
  }
  PrintTable(rows);
  FlushOutput();
  PrintLine("(the leases are at generation " + std::to_string(reply.generation()) + ")", stderr);
}

int Leases(const Invocation& call) {
  CommonOptions options;
  if (!ParseCommand(call, {}, &options, 0, 0)) return kExitOk;
  const auto reply =
      Call(AdminStub(options.admin), &Stub::ListLeases, v1::ListLeasesRequest(), options.admin);
  options.json ? PrintJson(reply) : PrintLeases(reply);
  return kExitOk;
}

int Release(const Invocation& call) {
  CommonOptions options;
  v1::ReleaseForceRequest request;
  bool all = false;
  const std::vector<Flag> flags = {
      {"all", "", "", "Release every force instead of one.", SetBool("all", &all)},
      GenerationFlag([&](uint64_t n) { request.set_expected_generation(n); })};
  const auto rest = ParseCommand(call, flags, &options, 0, 1);
  if (!rest) return kExitOk;
  if (rest->empty() != all)
    throw UsageError("either an ID (denoisectl leases lists them) or --all");
  request.set_all(all);
  if (!all) request.set_lease_id(rest->front());
  const auto reply = Call(AdminStub(options.admin), &Stub::ReleaseForce, request, options.admin);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine("released " + std::to_string(reply.released()));
  }
  return kExitOk;
}

}  // namespace

std::vector<Command> LeaseCommands() {
  return {
      {"force", "NAME", "Forces a backend for all jobs in scope, running ones included.",
       Uses::kAdmin, Force,
       "  denoisectl force TORCH_SDPA --ttl=10m --reason=\"comparing\"\n"
       "  denoisectl force VIDEO_SPARSE_ATTN --share=20% --parameters='{\"sparsity\": 0.75}'\n"
       "  denoisectl force SAGE_ATTN --model=shapes --role=self --layers=0-5 --steps=4-19\n"
       "  denoisectl force SAGE_ATTN --budget=\"relative_l2 p99 < 0.02 over 200\" --ttl=1h\n",
       kNarrowness},
      {"hold", "NAME", "Forces a backend for as long as this command runs (end it with Ctrl-C).",
       Uses::kAdmin, Hold,
       "  denoisectl hold REFERENCE\n"
       "  denoisectl hold REFERENCE --tenant=studio --reason=\"looking at their frames\"\n",
       kNarrowness},
      {"renew", "ID", "Gives a force a new end.", Uses::kAdmin, Renew,
       "  denoisectl renew force-3 --ttl=1h\n"},
      {"leases", "", "Lists the live forces, newest first, and their generation.", Uses::kAdmin,
       Leases, "  denoisectl leases\n"},
      {"release", "ID | --all", "Ends a force early.", Uses::kAdmin, Release,
       "  denoisectl release force-3\n  denoisectl release --all --generation=17\n"},
  };
}

}  // namespace denoised::cli
