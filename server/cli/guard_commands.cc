// shadow, drill: on the admin port.
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include <array>
#include <cstdio>

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

std::string SecondsText(const google::protobuf::Duration& ttl) {
  std::array<char, 32> text;
  const auto ms = static_cast<double>(TimeUtil::DurationToMilliseconds(ttl));
  std::snprintf(text.data(), text.size(), "%g s", ms / 1000);
  return text.data();
}

int Drill(const Invocation& call) {
  CommonOptions options;
  v1::DrillRequest request;
  std::string fault;
  const std::vector<Flag> flags = {
      {"fault", "FAULT", "",
       "throw, stall (until the drill's end, or a cancel) or nan: what every call of the backend "
       "does.",
       SetChoice("fault", {"throw", "stall", "nan"}, &fault)},
      {"ttl", "TIME", "", "How long (10s, 2m); at most 10m.",
       [&](const std::string& text) {
         const auto ttl = ParsePositiveDuration("ttl", text);
         *request.mutable_ttl() = TimeUtil::MillisecondsToDuration(ttl.count());
       }},
      {"reason", "TEXT", "", "For the audit.",
       [&](const std::string& text) { request.set_reason(text); }}};
  const auto rest = ParseCommand(call, flags, &options, 1, 1);
  if (!rest) return kExitOk;
  if (fault.empty() || !request.has_ttl()) throw UsageError("a drill needs --fault and --ttl");
  request.set_backend(rest->front());
  request.set_fault(fault);
  const auto stub = AdminStub(options.admin);
  const auto reply = Call(stub, &Stub::Drill, request, options.admin);
  if (options.json) {
    PrintJson(reply);
  } else {
    PrintLine(request.backend() + ": " + fault + " for " + SecondsText(request.ttl()));
  }
  return kExitOk;
}

// ---- shadow ------------------------------------------------------------------------------------

std::string Short(double number) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "%.3g", number);
  return text.data();
}

std::string HeadOf(const v1::ShadowRun& shadow) {
  std::string line = shadow.id() + " compares " + shadow.candidate() + " with " +
                     (shadow.baseline().empty() ? "what runs" : shadow.baseline()) + ", " +
                     OneLine(shadow.scope(), 300) + ", " + Short(shadow.share_percent()) +
                     "% of calls";
  if (!shadow.end().empty()) return line + ", ended: " + OneLine(shadow.end(), 300);
  if (!shadow.has_remaining()) return line;
  return line + ", " + SecondsText(shadow.remaining()) + " left";
}

void PrintStatistics(const v1::ShadowRun& shadow) {
  std::vector<std::vector<std::string>> rows = {{"  ROLE", "SIGMA", "BASELINE", "SAMPLES", "L2 P50",
                                                 "L2 P99", "L2 MAX", "MAX ABS", "COSINE DIST"}};
  for (const v1::ShadowStatistics& found : shadow.statistics()) {
    rows.push_back({"  " + found.role(), found.sigma_band(), found.baseline(),
                    std::to_string(found.samples()), Short(found.relative_l2_p50()),
                    Short(found.relative_l2_p99()), Short(found.relative_l2_max()),
                    Short(found.max_abs()), Short(found.cosine_distance())});
  }
  PrintTable(rows);
}

void PrintShadow(const v1::ShadowRun& shadow) {
  PrintLine(HeadOf(shadow));
  if (shadow.statistics().empty()) {
    PrintLine("  no samples yet");
  } else {
    PrintStatistics(shadow);
  }
}

// What all of them have cost, which each one says.
void PrintCost(const v1::ShadowRun& shadow) {
  PrintLine("comparisons have added " + Short(shadow.added_seconds()) + " s to " +
            Short(shadow.device_seconds()) + " s of work; at most " + Short(100 * shadow.budget()) +
            "% is allowed");
}

void Print(const CommonOptions& options, const v1::ShadowRun& shadow) {
  if (options.json) return PrintJson(shadow);
  PrintShadow(shadow);
  PrintCost(shadow);
}

void Print(const CommonOptions& options, const v1::ListShadowsResponse& reply) {
  if (options.json) return PrintJson(reply);
  for (const v1::ShadowRun& shadow : reply.shadows()) PrintShadow(shadow);
  reply.shadows().empty() ? PrintLine("no shadows") : PrintCost(reply.shadows(0));
}

std::vector<Flag> ShadowFlags(v1::ShadowRequest* request, std::string* stop) {
  return {
      {"baseline", "NAME", "", "What the candidate is held against; unset: what runs.",
       SetString(request->mutable_baseline())},
      {"share", "PERCENT", "100%", "Part of the calls that are compared, where time allows.",
       [request](const std::string& text) {
         request->set_share_percent(ParsePercent("share", text));
       }},
      {"ttl", "TIME", "", "Ends by itself after this long (90s, 10m; at most 24h); unset: no end.",
       [request](const std::string& text) {
         const auto ttl = ParsePositiveDuration("ttl", text);
         *request->mutable_ttl() = TimeUtil::MillisecondsToDuration(ttl.count());
       }},
      {"model", "NAME", "", "Only for this model.",
       [request](const std::string& text) { request->mutable_scope()->set_model(text); }},
      {"parameters", "JSON", "", "The candidate's parameters, a JSON object.",
       [request](const std::string& text) {
         const auto status =
             google::protobuf::util::JsonStringToMessage(text, request->mutable_parameters());
         if (!status.ok()) throw UsageError("--parameters is a JSON object");
       }},
      {"reason", "TEXT", "", "For the audit.",
       [request](const std::string& text) { request->set_reason(text); }},
      {"stop", "ID", "", "Ends one and prints what it found.", SetString(stop)}};
}

int Shadow(const Invocation& call) {
  CommonOptions options;
  v1::ShadowRequest request;
  std::string stop;
  const auto rest = ParseCommand(call, ShadowFlags(&request, &stop), &options, 0, 1);
  if (!rest) return kExitOk;
  if (!rest->empty() && !stop.empty()) throw UsageError("--stop takes no CANDIDATE");
  const bool lists = rest->empty() && stop.empty();
  if (lists && request.ByteSizeLong() > 0) throw UsageError("a CANDIDATE is missing");
  const auto stub = AdminStub(options.admin);
  if (lists) {
    Print(options, Call(stub, &Stub::ListShadows, v1::ListShadowsRequest(), options.admin));
  } else if (!stop.empty()) {
    v1::StopShadowRequest ended;
    ended.set_id(stop);
    Print(options, Call(stub, &Stub::StopShadow, ended, options.admin));
  } else {
    request.set_candidate(rest->front());
    Print(options, Call(stub, &Stub::Shadow, request, options.admin));
  }
  return kExitOk;
}

}  // namespace

std::vector<Command> GuardCommands() {
  return {
      {"shadow", "[CANDIDATE]",
       "Compares a backend with what runs, on the server's own work; alone: shows findings.",
       Uses::kAdmin, Shadow,
       "  denoisectl shadow SAGE_ATTN --share=5% --ttl=10m\n"
       "  denoisectl shadow SLIDING_TILE_ATTN --baseline=REFERENCE --model=shapes\n"
       "  denoisectl shadow\n"
       "  denoisectl shadow --stop=shadow-1\n",
       "Runs in idle time and between steps, and holds work up by --shadow_budget of the server at "
       "most.\nNo result depends on it.\n"},
      {"drill", "NAME", "Has a backend throw, stall or give NaN for a while, as a rehearsal.",
       Uses::kAdmin, Drill, "  denoisectl drill SAGE_ATTN --fault=nan --ttl=30s\n",
       "The server wants --enable_drills.\n"},
  };
}

}  // namespace denoised::cli
