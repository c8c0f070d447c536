#include "server/cli/lease_flags.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <limits>
#include <utility>

#include "runtime/budget.h"
#include "server/cli/text.h"
#include "server/convert_attention.h"
#include "server/convert_lease.h"

namespace denoised::cli {
namespace {

using RequestOf = std::function<v1::ForceBackendRequest*()>;

UsageError Wanted(const std::string& flag, const std::string& what, const std::string& text) {
  return UsageError("--" + flag + " is " + what + ", got '" + OneLine(text, 100) + "'");
}

// A JSON object as a message.
void SetParameters(const std::string& flag, const std::string& text,
                   google::protobuf::Struct* parameters) {
  const auto status = google::protobuf::util::JsonStringToMessage(text, parameters);
  if (!status.ok()) throw Wanted(flag, "a JSON object", text);
}

SigmaRange ParseSigma(const std::string& flag, const std::string& text) {
  if (const auto range = ParseSigmaRange(text)) return *range;
  throw Wanted(flag, "a range of noise levels such as 0.2-0.9", text);
}

Budget ParseBudgetFlag(const std::string& text) {
  if (const auto budget = ParseBudget(text)) return *budget;
  throw Wanted("budget", "such as \"relative_l2 p99 < 0.02 over 200\"", text);
}

std::vector<Flag> WorkFlags(const std::string& prefix, const RequestOf& request) {
  return {
      {prefix + "model", "NAME", "", "Only for this model.",
       [=](const std::string& text) { request()->mutable_scope()->set_model(text); }},
      {prefix + "tenant", "NAME", "", "Only for this tenant's work.",
       [=](const std::string& text) { request()->mutable_scope()->set_tenant(text); }},
      {prefix + "job", "ID", "", "Only for this job or session, by its whole ID.",
       [=](const std::string& text) { request()->mutable_scope()->set_job_id(text); }},
      {prefix + "share", "PERCENT", "",
       "Only for this part of all jobs (20%), always the same ones: a canary. A larger share holds "
       "all of a smaller one.",
       [=](const std::string& text) {
         request()->mutable_scope()->set_share_percent(ParsePercent(prefix + "share", text));
       }},
  };
}

std::vector<Flag> PlaceFlags(const std::string& prefix, const RequestOf& request) {
  return {
      {prefix + "role", "ROLE", "", "Only for attention of this role: self or cross.",
       [=](const std::string& text) {
         std::string role;
         SetChoice(prefix + "role", {"self", "cross"}, &role)(text);
         request()->mutable_scope()->set_role(role);
       }},
      {prefix + "layers", "A-B", "", "Only in these layers of the transformer, counted from 0.",
       [=](const std::string& text) {
         *request()->mutable_scope()->mutable_layers() =
             ToProto(ParseRangeFlag(prefix + "layers", text));
       }},
      {prefix + "steps", "A-B", "", "Only at these steps, counted from 0.",
       [=](const std::string& text) {
         *request()->mutable_scope()->mutable_steps() =
             ToProto(ParseRangeFlag(prefix + "steps", text));
       }},
      {prefix + "sigma", "A-B", "", "Only at these noise levels (0.2-0.9); 1 is the beginning.",
       [=](const std::string& text) {
         *request()->mutable_scope()->mutable_sigma() = ToProto(ParseSigma(prefix + "sigma", text));
       }},
  };
}

}  // namespace

Interval ParseRangeFlag(const std::string& name, const std::string& text) {
  if (const auto interval = ParseInterval(text)) return *interval;
  throw Wanted(name, "a range such as 4-19, or one number", text);
}

double ParsePercent(const std::string& name, const std::string& text) {
  const std::string number = text.ends_with('%') ? text.substr(0, text.size() - 1) : text;
  double percent = 0;
  SetDouble(name, 0, 100, [&](double x) { percent = x; })(number);
  if (percent > 0) return percent;
  throw Wanted(name, "above 0% and at most 100%", text);
}

std::vector<Flag> LeaseFlags(const std::string& prefix, const RequestOf& request) {
  std::vector<Flag> flags = WorkFlags(prefix, request);
  for (Flag& flag : PlaceFlags(prefix, request)) flags.push_back(std::move(flag));
  flags.push_back(
      {prefix + "parameters", "JSON", "",
       "The backend's parameters, a JSON object (--parameters='{\"sparsity\": 0.9}'); unset: those "
       "that a job or its model has for it.",
       [=](const std::string& text) {
         SetParameters(prefix + "parameters", text, request()->mutable_parameters());
       }});
  flags.push_back({prefix + "strict", "", "",
                   "Work fails that has a layer in scope which the backend cannot serve, instead "
                   "of falling to the next choice.",
                   [=](const std::string& text) {
                     bool strict = false;
                     SetBool(prefix + "strict", &strict)(text);
                     request()->set_policy(strict ? v1::STRICT : v1::PREFER);
                   }});
  return flags;
}

std::vector<Flag> TermFlags(v1::ForceBackendRequest* request) {
  return {
      TtlFlag([request] { return request->mutable_ttl(); }),
      {"reason", "TEXT", "", "For the log and for `leases`.",
       [request](const std::string& text) { request->set_reason(text); }},
      GenerationFlag([request](uint64_t n) { request->set_expected_generation(n); }),
      {"budget", "TEXT", "",
       "How far it may be from what would run without it (\"relative_l2 p99 < 0.02 over 200\": "
       "relative_l2, max_abs or cosine_distance; mean, p50, p90, p99 or max; over so many sampled "
       "calls). Broken, the step is done again without the force, and the force ends; that is as "
       "soon as nothing that could still come would hold it.",
       [request](const std::string& text) {
         *request->mutable_budget() = ToProto(ParseBudgetFlag(text));
       }},
  };
}

Flag TtlFlag(std::function<google::protobuf::Duration*()> ttl) {
  return {"ttl", "TIME", "", "Ends by itself after this long (90s, 10m, 1h); unset: no end.",
          [ttl = std::move(ttl)](const std::string& text) {
            const auto time = ParsePositiveDuration("ttl", text);
            *ttl() = google::protobuf::util::TimeUtil::MillisecondsToDuration(time.count());
          }};
}

Flag GenerationFlag(std::function<void(uint64_t)> set) {
  return {"generation", "N", "",
          "Change nothing where the leases are at another generation than this, which `leases` "
          "shows: somebody else changed them meanwhile.",
          SetInt("generation", 0, std::numeric_limits<int64_t>::max(),
                 [set = std::move(set)](int64_t n) { set(static_cast<uint64_t>(n)); })};
}

}  // namespace denoised::cli
